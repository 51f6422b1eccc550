"""A thousand followers of one session while it is recorded, with one among them that stalls."""

import json
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.protobuf.message import Message

from bench import generator, samples
from bench.context import Context
from bench.scenarios import PACKAGE, Preparation
from bench.servers import Server
from infrascout.sessions.v1 import recording_service_pb2, session_service_pb2

FOLLOWERS = 1_000
EXECUTIONS = 2_000
# Of these so many are begun first and finished last.
BEGUN = 50
RECORDERS = 16
PATIENCE_SECONDS = 240


def measure(context: Context) -> list[dict[str, Any]]:
    """Without a stalled follower, then with one; without followers for comparison."""
    with context.server("followers") as ours:
        preparation = Preparation(ours, context.folder)
        return [
            _run(context, ours, preparation, followers, stalled)
            for followers, stalled in ((0, 0), (FOLLOWERS, 0), (FOLLOWERS, 1))
        ]


def _run(
    context: Context, ours: Server, preparation: Preparation, followers: int, stalled: int
) -> dict[str, Any]:
    batch = preparation.batch()
    [session] = preparation.sessions(batch, 1)
    _send(preparation, "BeginExecution", (_begin(batch, n, session) for n in range(BEGUN)))
    ours.forget_peak()
    before, memory = ours.cpu_seconds(), ours.memory_bytes()
    with ThreadPoolExecutor() as threads:
        following = None
        if followers:
            process = _follow(context, ours, session, followers, stalled)
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise SystemExit(f"the followers did not start: {process.communicate()}")
            following = threads.submit(process.communicate)
        start = time.perf_counter()
        _send(
            preparation,
            "RecordExecution",
            (samples.record_execution(batch, n, session) for n in range(EXECUTIONS - BEGUN)),
        )
        recorded = time.perf_counter() - start
        _send(preparation, "FinishExecution", (_finish(batch, n, session) for n in range(BEGUN)))
        submit = samples.submit_session(batch, 0, session)
        preparation.send("SessionService/SubmitSession", [submit])
        report = {} if following is None else json.loads(following.result()[0])
    result = {
        "followers": followers,
        "stalled": stalled,
        "executions": EXECUTIONS,
        "finished": BEGUN,
        "recorded_per_second": (EXECUTIONS - BEGUN) / recorded,
        "server_cpu_seconds": ours.cpu_seconds() - before,
        "server_memory_grew": ours.peak_bytes() - memory,
        **report,
    }
    context.say(f"followers: {result}")
    return result


def _follow(
    context: Context, ours: Server, session: str, followers: int, stalled: int
) -> "subprocess.Popen[str]":
    request = session_service_pb2.ListExecutionsRequest(session_id=session, follow=True)
    file = context.folder / "follow.request"
    generator.write_requests(file, [request.SerializeToString()])
    return subprocess.Popen(
        [
            *(str(generator.BINARY), "-mode", "follow", "-requests", str(file)),
            *("-target", ours.address, "-method", f"{PACKAGE}SessionService/ListExecutions"),
            *("-callers", str(followers + stalled), "-stalled", str(stalled)),
            *("-calls", str(EXECUTIONS), "-patience", f"{PATIENCE_SECONDS}s"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


def _send(preparation: Preparation, method: str, requests: Iterable[Message]) -> None:
    preparation.send(f"RecordingService/{method}", requests, callers=RECORDERS)


def _begin(batch: str, n: int, session: str) -> recording_service_pb2.BeginExecutionRequest:
    return recording_service_pb2.BeginExecutionRequest(
        session_id=session,
        command=samples.COMMAND,
        capability=samples.CAPABILITY,
        start_time=samples.TIME,
        request_id=samples.request_id(f"b{batch}", n),
    )


def _finish(batch: str, n: int, session: str) -> recording_service_pb2.FinishExecutionRequest:
    return recording_service_pb2.FinishExecutionRequest(
        session_id=session,
        sequence=n + 1,
        exit_code=0,
        end_time=samples.TIME,
        request_id=samples.request_id(f"f{batch}", n),
    )
