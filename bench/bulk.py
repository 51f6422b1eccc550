"""`RecordExecutions`: one client, fifty a message, against raw loops that commit fifty a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

from bench import disk, generator, same_rows, samples, servers
from bench.calls import RESERVE, WARM_UP_SECONDS
from bench.context import Context, turns
from bench.databases import Postgres, Sqlite
from bench.scenarios import PACKAGE, Preparation
from bench.servers import Server

ROWS = 50
WINDOW = 16
# In the first round; see `calls`.
ROWS_PER_SECOND = 30_000
METHOD = f"{PACKAGE}RecordingService/RecordExecutions"


def measure(context: Context) -> dict[str, Any]:
    rounds: list[dict[str, Any]] = []
    with context.server("bulk") as ours, servers.noop() as noop:
        preparation = Preparation(ours, context.folder)
        for number in range(context.rounds):
            _write_requests(context, preparation, rounds)
            run: dict[str, Callable[[], Any]] = {
                "ours": lambda: _stream(context, ours, once=True),
                "raw": partial(_raw, context, f"raw{number}"),
                "flat": partial(_flat, context, number),
                "noop": lambda: _stream(context, noop, once=False),
            }
            rounds.append({name: run[name]() for name in turns(number, *run)})
            context.say(
                f"round {number + 1} of {context.rounds}, RecordExecutions, rows a second: "
                + ", ".join(f"{k} {v['rows_per_second']:,.0f}" for k, v in rounds[-1].items() if v)
            )
        memory = {"ours": ours.peak_bytes(), "noop": noop.peak_bytes()}
    return {"rows": ROWS, "window": WINDOW, "rounds": rounds, "peak_bytes": memory}


def _write_requests(
    context: Context, preparation: Preparation, rounds: list[dict[str, Any]]
) -> None:
    if rounds:
        messages = int(RESERVE * max(one["ours"]["messages"] for one in rounds)) + WINDOW
    else:
        messages = int((context.seconds + WARM_UP_SECONDS) * ROWS_PER_SECOND / ROWS)
    batch = preparation.batch()
    [session] = preparation.sessions(batch, 1)
    generator.write_requests(
        context.folder / "requests",
        (
            message.SerializeToString()
            for message in samples.record_executions(batch, messages, ROWS, session)
        ),
    )


def _stream(context: Context, server: Server, *, once: bool) -> dict[str, Any]:
    before = server.cpu_seconds()
    load = generator.measure(
        server.address,
        METHOD,
        context.folder / "requests",
        callers=1,
        seconds=context.seconds,
        warm_up_seconds=WARM_UP_SECONDS,
        once=once,
        mode="bidi",
        window=WINDOW,
    )
    used = server.cpu_seconds() - before
    return {
        "rows_per_second": load.per_second * ROWS,
        "messages": load.all_calls,
        "latency_us": load.latency_us,
        "cpu_us_per_row": used * 1e6 / max(load.all_calls * ROWS, 1),
        "generator_cores": load.cpu_per_second,
        "errors": load.errors,
        "first_errors": load.first_errors,
    }


def _raw(context: Context, name: str) -> dict[str, Any]:
    if isinstance(context.database, Sqlite):
        rate = same_rows.sqlite_rows_per_second(context.database, name, ROWS, context.seconds)
    else:
        assert isinstance(context.database, Postgres)
        rate = same_rows.postgres_rows_per_second(context.database, name, ROWS, context.seconds)
    return {"rows_per_second": rate}


def _flat(context: Context, number: int) -> dict[str, Any] | None:
    """One table of one index; see `disk`."""
    if not isinstance(context.database, Sqlite):
        return None
    file = context.folder / f"flat{number}.db"
    return {"rows_per_second": disk.sqlite_rows_per_second(file, ROWS, context.seconds)}
