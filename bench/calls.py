"""Unary calls: ours as it is shipped against the no-op server, in interleaved rounds."""

from dataclasses import asdict, dataclass
from typing import Any

from bench import disk, generator, same_rows, servers
from bench.context import Context, turns
from bench.databases import Sqlite
from bench.generator import Load
from bench.scenarios import SCENARIOS, Preparation, Scenario
from bench.servers import Server

WARM_UP_SECONDS = 0.5
# Requests prepared for each second of the first round, for one caller and for
# more; then a quarter above what was used. Too few only end a measurement early.
REQUESTS_PER_SECOND = (2_000, 4_000)
RESERVE = 1.25

CALLERS: dict[str, dict[str, tuple[int, ...]]] = {
    "sqlite": {
        "GetSession": (1, 4, 16, 64),
        "RecordExecution": (1, 4, 16, 64),
        "StartSession": (1, 16, 64),
        "SubmitSession": (1, 16, 64),
        "ListSessions": (16,),
    },
    "postgres": {"GetSession": (1, 64), "RecordExecution": (1, 64)},
}


@dataclass(frozen=True)
class Measurement:
    """One server, one scenario, one number of callers, one round."""

    load: Load
    server_cpu_us: float  # a call


def measure(context: Context) -> dict[str, Any]:
    results: dict[tuple[str, int], list[dict[str, Measurement]]] = {}
    pairs = [
        (rpc, callers)
        for rpc, of_rpc in CALLERS[context.database.kind].items()
        if not context.rpcs or rpc in context.rpcs
        for callers in (context.callers or of_rpc)
    ]
    with context.server("calls") as ours, servers.noop() as noop:
        preparation = Preparation(ours, context.folder)
        for number in range(context.rounds):
            for rpc, callers in pairs:
                rounds = results.setdefault((rpc, callers), [])
                rounds.append(_round(context, number, rpc, callers, rounds, preparation, noop))
                a, b = (rounds[-1][name].load.per_second for name in ("ours", "noop"))
                context.say(
                    f"round {number + 1} of {context.rounds}, {rpc}, {callers} at once: "
                    f"ours {a:,.0f}/s, no-op {b:,.0f}/s"
                )
        memory = {"ours": ours.peak_bytes(), "noop": noop.peak_bytes()}
    rows = [
        {"rpc": rpc, "callers": callers, "rounds": [_plain(one) for one in rounds]}
        for (rpc, callers), rounds in results.items()
    ]
    return {"rows": rows, "peak_bytes": memory, "ceilings": _ceilings(context)}


def _ceilings(context: Context) -> dict[str, float]:
    """What one durable write costs at least."""
    found = {"fsync_us": disk.fsync_microseconds(context.folder)}
    if isinstance(context.database, Sqlite):
        rate = same_rows.sqlite_rows_per_second(context.database, "single", 1, context.seconds)
        found["raw_rows_per_second"] = rate
    return found


def _plain(one: dict[str, Measurement]) -> dict[str, Any]:
    return {name: asdict(measurement) for name, measurement in one.items()}


def _round(
    context: Context,
    number: int,
    rpc: str,
    callers: int,
    rounds: list[dict[str, Measurement]],
    preparation: Preparation,
    noop: Server,
) -> dict[str, Measurement]:
    scenario, file = SCENARIOS[rpc], context.folder / "requests"
    requests = scenario.requests(preparation, _needed(context, callers, rounds))
    generator.write_requests(file, (request.SerializeToString() for request in requests))
    # The no-op server may see a request again.
    run = {
        "ours": lambda: one(context, preparation.server, scenario, callers, once=scenario.once),
        "noop": lambda: one(context, noop, scenario, callers, once=False),
    }
    return {name: run[name]() for name in turns(number, "ours", "noop")}


def _needed(context: Context, callers: int, rounds: list[dict[str, Measurement]]) -> int:
    if rounds:
        return int(RESERVE * max(one["ours"].load.all_calls for one in rounds)) + callers
    return int((context.seconds + WARM_UP_SECONDS) * REQUESTS_PER_SECOND[callers > 1])


def one(
    context: Context, server: Server, scenario: Scenario, callers: int, *, once: bool
) -> Measurement:
    before = server.cpu_seconds()
    load = generator.measure(
        server.address,
        scenario.path,
        context.folder / "requests",
        callers=callers,
        seconds=context.seconds,
        warm_up_seconds=WARM_UP_SECONDS,
        once=once,
    )
    used = server.cpu_seconds() - before
    return Measurement(load, server_cpu_us=used * 1e6 / max(load.all_calls, 1))
