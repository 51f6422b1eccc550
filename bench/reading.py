"""`ListExecutions`: against the same stream without a database, and in very long sessions."""

import statistics
import time
from dataclasses import asdict
from typing import Any

import grpc

from bench import fill, generator, samples, servers
from bench.calls import WARM_UP_SECONDS
from bench.context import Context, turns
from bench.generator import Load
from bench.scenarios import PACKAGE, Preparation
from bench.servers import Server
from infrascout.sessions.v1 import session_service_pb2

METHOD = f"{PACKAGE}SessionService/ListExecutions"
EXECUTIONS = 10_000
# How many of them are asked for, by how many callers.
READS = ((EXECUTIONS, 1), (1_000, 1), (1_000, 16))
LONG_SESSIONS = (100, 10_000, 1_000_000)
FIRST_MESSAGES = 20
# Between two streams, so that one which is broken off is over before the next.
PAUSE_SECONDS = 0.1


def measure(context: Context) -> dict[str, Any]:
    return {"streams": _streams(context), "long": _long_sessions(context)}


def _streams(context: Context) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"executions": count, "callers": callers, "rounds": []} for count, callers in READS
    ]
    with context.server("reading") as ours, servers.noop() as noop:
        session = Preparation(ours, context.folder).executions(EXECUTIONS)
        for number in range(context.rounds):
            for row in rows:
                request = session_service_pb2.ListExecutionsRequest(session_id=session)
                if row["executions"] < EXECUTIONS:
                    request.limit = row["executions"]
                file = context.folder / "requests"
                generator.write_requests(file, [request.SerializeToString()])
                one = {
                    name: asdict(_stream(context, {"ours": ours, "noop": noop}[name], row))
                    for name in turns(number, "ours", "noop")
                }
                row["rounds"].append(one)
                a, b = (one[k]["per_second"] * row["executions"] for k in ("ours", "noop"))
                context.say(
                    f"round {number + 1} of {context.rounds}, ListExecutions of "
                    f"{row['executions']:,}, {row['callers']} at once, executions a second: "
                    f"ours {a:,.0f}, no-op {b:,.0f}"
                )
    return rows


def _stream(context: Context, server: Server, row: dict[str, Any]) -> Load:
    return generator.measure(
        server.address,
        METHOD,
        context.folder / "requests",
        callers=row["callers"],
        seconds=context.seconds,
        warm_up_seconds=WARM_UP_SECONDS,
        once=False,
        mode="stream",
    )


def _long_sessions(context: Context) -> dict[str, Any]:
    """In sessions of a hundred, ten thousand and a million executions."""
    context.say(f"filling sessions of {LONG_SESSIONS} executions")
    sessions = fill.executions(context.database, "long", list(LONG_SESSIONS))
    with context.server("long") as ours:
        first = _first_messages(ours, sessions)
        context.say(f"first message of a stream, ms: {first}")
        record = {
            str(count): statistics.median(
                _record(context, ours, session, f"{count}-{number}")
                for number in range(context.rounds)
            )
            for count, session in zip(LONG_SESSIONS, sessions, strict=True)
        }
        memory = _stream_all(context, ours, sessions[-1])
    context.say(f"RecordExecution, p50 µs: {record}; streaming them all: {memory}")
    return {"first_message_ms": first, "record_p50_us": record, "stream": memory}


def _first_messages(ours: Server, sessions: list[str]) -> dict[str, float]:
    """The median time until the first message, warm; the sessions take turns."""
    times: dict[str, list[float]] = {session: [] for session in sessions}
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(ours.address, options=options) as channel:
        streams: Any = channel.unary_stream(METHOD)  # bytes: the client does not parse
        for _ in range(1 + FIRST_MESSAGES):
            for session in sessions:
                request = session_service_pb2.ListExecutionsRequest(session_id=session)
                data = request.SerializeToString()
                start = time.perf_counter()
                stream = streams(data)
                next(stream)
                times[session].append((time.perf_counter() - start) * 1000)
                stream.cancel()
                time.sleep(PAUSE_SECONDS)
    return {
        str(count): statistics.median(values[1:])
        for count, values in zip(LONG_SESSIONS, times.values(), strict=True)
    }


def _record(context: Context, ours: Server, session: str, batch: str) -> float:
    """The p50 of recording one after the other in a session."""
    requests = (
        samples.record_execution(batch, n, session).SerializeToString()
        for n in range(int(context.seconds * 2_000))
    )
    generator.write_requests(context.folder / "requests", requests)
    load = generator.measure(
        ours.address,
        f"{PACKAGE}RecordingService/RecordExecution",
        context.folder / "requests",
        callers=1,
        seconds=context.seconds / 4,
        warm_up_seconds=context.seconds / 8,
        once=True,
    )
    return load.latency_us["p50"]


def _stream_all(context: Context, ours: Server, session: str) -> dict[str, float]:
    """What the server's memory grows by while it streams the longest session."""
    ours.forget_peak()
    before = ours.memory_bytes()
    request = session_service_pb2.ListExecutionsRequest(session_id=session)
    load = generator.stream_once(ours.address, METHOD, request.SerializeToString(), context.folder)
    if load.errors:
        raise SystemExit(f"streaming failed: {load.first_errors}")
    return {
        "seconds": load.latency_us["max"] / 1e6,
        "messages": load.messages,
        "bytes": load.bytes,
        "memory_before": before,
        "memory_grew": ours.peak_bytes() - before,
        "memory_after": ours.memory_bytes(),
    }
