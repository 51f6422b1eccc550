"""`make bench`: ours as it is shipped against the no-op server, in interleaved rounds."""

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from itertools import product
from pathlib import Path

from bench import disk, generator, report, servers
from bench.report import Measurement, Pair
from bench.scenarios import SCENARIOS, Preparation, Scenario
from bench.servers import Server

WARM_UP_SECONDS = 0.5
# Requests prepared for each second of the first round, for one caller and for
# more; then a quarter above what was used. Too few only end a measurement early.
REQUESTS_PER_SECOND = (2_000, 4_000)
RESERVE = 1.25


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    generator.build()
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="infrascout-bench-", dir=options.folder)
            )
        )
        ceilings = _ceilings(folder)
        ours = stack.enter_context(servers.ours(folder))
        noop = stack.enter_context(servers.noop())
        results = _measure(options, ours, noop, folder)
        memory = (
            f"peak memory: ours {ours.peak_bytes() / 1e6:.0f} MB, "
            f"no-op {noop.peak_bytes() / 1e6:.0f} MB"
        )
    print(report.table(results, markdown=options.markdown), end="\n\n")
    facts = [report.machine(), report.generator_share(results), memory, *ceilings]
    print("\n".join(f"- {fact}" for fact in facts))
    problems = report.errors(results)
    print("".join(f"ERROR {problem}\n" for problem in problems), end="", file=sys.stderr)
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--markdown", action="store_true", help="print the README's table")
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure; else the usual for temporary files"
    )
    return parser.parse_args()


def _ceilings(folder: Path) -> list[str]:
    return [
        f"fsync of an appended 4 KiB: {disk.fsync_microseconds(folder):,.0f} µs",
        *(
            f"raw SQLite, {rows} such execution{'s' * (rows > 1)} a transaction: "
            f"{disk.sqlite_rows_per_second(folder, rows, seconds=1):,.0f} rows/s"
            for rows in (1, 50)
        ),
    ]


def _measure(
    options: argparse.Namespace, ours: Server, noop: Server, folder: Path
) -> dict[tuple[str, int], list[Pair]]:
    preparation = Preparation(ours.address, folder)
    file = folder / "requests"
    results: dict[tuple[str, int], list[Pair]] = {}
    for number, name, callers in product(range(options.rounds), options.scenario, options.callers):
        scenario = SCENARIOS[name]
        rounds = results.setdefault((name, callers), [])
        requests = scenario.requests(preparation, _needed(options, callers, rounds))
        generator.write_requests(file, (request.SerializeToString() for request in requests))
        # Who goes first alternates; the no-op server may see a request again.
        turns = [(ours, scenario.once), (noop, False)]
        measured = {
            server: _one(server, scenario, file, callers, options.seconds, once=once)
            for server, once in (turns if number % 2 == 0 else reversed(turns))
        }
        pair = Pair(measured[ours], measured[noop])
        rounds.append(pair)
        print(
            f"round {number + 1} of {options.rounds}, {name}, {callers} at once: "
            f"ours {pair.ours.load.per_second:,.0f}/s, no-op {pair.noop.load.per_second:,.0f}/s",
            file=sys.stderr,
        )
    return results


def _needed(options: argparse.Namespace, callers: int, rounds: list[Pair]) -> int:
    if rounds:
        return int(RESERVE * max(pair.ours.load.all_calls for pair in rounds)) + callers
    seconds: float = options.seconds + WARM_UP_SECONDS
    return int(seconds * REQUESTS_PER_SECOND[callers > 1])


def _one(
    server: Server, scenario: Scenario, requests: Path, callers: int, seconds: float, *, once: bool
) -> Measurement:
    before = server.cpu_seconds()
    load = generator.measure(
        server.address,
        scenario.path,
        requests,
        callers=callers,
        seconds=seconds,
        warm_up_seconds=WARM_UP_SECONDS,
        once=once,
        mode=scenario.mode,
    )
    used = server.cpu_seconds() - before
    return Measurement(load, server_cpu_us=used * 1e6 / max(load.all_calls, 1))


if __name__ == "__main__":
    sys.exit(main())
