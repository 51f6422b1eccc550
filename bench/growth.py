"""How p50 grows with the number of sessions: the same calls over three databases, in turns."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from bench import fill, generator, samples, sql_time
from bench.context import Context, turns
from bench.databases import Sqlite
from bench.scenarios import PACKAGE, Preparation
from bench.servers import Server
from infrascout.sessions.v1 import session_pb2, session_service_pb2

SIZES = (1_000, 100_000, 1_000_000)
# A part of what the unary calls take: these are many.
SHARE = 0.25
REQUESTS = 20_000
STARTS = 2_500
FILTERS = sql_time.FILTERS

STATUSES = {
    fill.RUNNING: session_pb2.SESSION_STATUS_RUNNING,
    fill.PENDING: session_pb2.SESSION_STATUS_PENDING_REVIEW,
    fill.INTERRUPTED: session_pb2.SESSION_STATUS_INTERRUPTED,
    fill.COMPLETED: session_pb2.SESSION_STATUS_COMPLETED,
}


def measure(context: Context) -> dict[str, Any]:
    p50: dict[str, dict[int, list[float]]] = {}
    p99: dict[str, dict[int, list[float]]] = {}
    with ExitStack() as stack:
        over: dict[int, Server] = {}
        for size in SIZES:
            context.say(f"filling {size:,} sessions")
            fill.sessions(context.database, f"sessions{size}", size)
            over[size] = stack.enter_context(context.server(f"sessions{size}"))
        preparations = {size: Preparation(server, context.folder) for size, server in over.items()}
        for number in range(context.rounds):
            for name in QUERIES:
                method, requests = QUERIES[name]
                for size in map(int, turns(number, *map(str, SIZES))):
                    load = _one(context, preparations[size], method, requests, size)
                    p50.setdefault(name, {}).setdefault(size, []).append(load.latency_us["p50"])
                    p99.setdefault(name, {}).setdefault(size, []).append(load.latency_us["p99"])
            context.say(f"round {number + 1} of {context.rounds} of growth")
    rows = {
        name: {
            "p50_us": {str(size): median(values) for size, values in sizes.items()},
            "p99_us": {str(size): median(p99[name][size]) for size in sizes},
        }
        for name, sizes in p50.items()
    }
    context.say(str({name: row["p50_us"] for name, row in rows.items()}))
    result: dict[str, Any] = {"sizes": list(SIZES), "rows": rows}
    if isinstance(context.database, Sqlite):
        result["sql"] = {
            str(size): sql_time.measure(context.database, f"sessions{size}", size) for size in SIZES
        }
    return result


def _one(
    context: Context,
    preparation: Preparation,
    method: str,
    requests: Callable[[Preparation, int], Iterator[Message]],
    size: int,
) -> generator.Load:
    file = context.folder / "requests"
    generator.write_requests(
        file, (request.SerializeToString() for request in requests(preparation, size))
    )
    load = _measured(context, preparation, method, file)
    if load.calls == 0:  # everything stood still for a moment
        load = _measured(context, preparation, method, file)
    if load.errors or not load.calls:
        raise SystemExit(f"{method} over {size:,} sessions: {load.errors} {load.first_errors}")
    return load


def _measured(
    context: Context, preparation: Preparation, method: str, file: Path
) -> generator.Load:
    return generator.measure(
        preparation.server.address,
        PACKAGE + method,
        file,
        callers=1,
        seconds=context.seconds * SHARE,
        warm_up_seconds=context.seconds * SHARE / 2,
        once=method.endswith("StartSession"),
    )


_seeds = count()


def _get_session(_: Preparation, size: int) -> Iterator[Message]:
    # Random ones, of which the server's memory holds ten thousand at most.
    chance = random.Random(next(_seeds))
    for _n in range(REQUESTS):
        yield session_service_pb2.GetSessionRequest(
            session_id=samples.session_id(chance.randrange(size))
        )


def _start_session(preparation: Preparation, _: int) -> Iterator[Message]:
    batch, n = preparation.batch(), STARTS
    preparation.agents(batch, n)
    return (samples.start_session(batch, i) for i in range(n))


def _list_sessions(name: str) -> Callable[[Preparation, int], Iterator[Message]]:
    def requests(_: Preparation, size: int) -> Iterator[Message]:
        chance = random.Random(next(_seeds))
        for _n in range(REQUESTS // 10):
            yield _list_request(FILTERS[name](chance, size))

    return requests


def _list_request(values: dict[str, Any]) -> Message:
    request = samples.list_sessions()
    for name, value in values.items():
        if name == "status":
            request.status = STATUSES[value]
        elif name.startswith("started"):
            time: Timestamp = getattr(request, name)
            time.FromMicroseconds(value)
        else:
            setattr(request, name, value)
    return request


QUERIES: dict[str, tuple[str, Callable[[Preparation, int], Iterator[Message]]]] = {
    "GetSession": ("SessionService/GetSession", _get_session),
    "StartSession": ("SessionService/StartSession", _start_session),
    **{
        f"ListSessions, {name}": ("SessionService/ListSessions", _list_sessions(name))
        for name in FILTERS
    },
}
