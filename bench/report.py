"""Turns measurements into tables."""

import os
import platform
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import grpc

from bench.generator import Load


@dataclass(frozen=True)
class Measurement:
    """One server, one scenario, one number of callers, one round."""

    load: Load
    server_cpu_us: float  # a call


@dataclass(frozen=True)
class Pair:
    """Ours and the no-op server, one right after the other."""

    ours: Measurement
    noop: Measurement


Rounds = Sequence[Pair]


def _of(server: str, value: Callable[[Measurement], float], shape: str) -> Callable[[Rounds], str]:
    """The median over the rounds."""
    return lambda rounds: format(median(value(getattr(pair, server)) for pair in rounds), shape)


def _ratios(rounds: Rounds) -> list[float]:
    return [
        pair.ours.load.per_second / pair.noop.load.per_second if pair.noop.load.calls else 0.0
        for pair in rounds
    ]


def _spread(rounds: Rounds) -> str:
    ratios = _ratios(rounds)
    return f"{min(ratios):.0%}–{max(ratios):.0%}"  # noqa: RUF001


COLUMNS: dict[str, Callable[[Rounds], str]] = {
    "ours/no-op": lambda rounds: f"{median(_ratios(rounds)):.0%}",
    "rounds": _spread,
    "ours /s": _of("ours", lambda m: m.load.per_second, ",.0f"),
    "no-op /s": _of("noop", lambda m: m.load.per_second, ",.0f"),
    "p50 ms": _of("ours", lambda m: m.load.latency_us["p50"] / 1000, ".2f"),
    "p99 ms": _of("ours", lambda m: m.load.latency_us["p99"] / 1000, ".2f"),
    "no-op p50": _of("noop", lambda m: m.load.latency_us["p50"] / 1000, ".2f"),
    "no-op p99": _of("noop", lambda m: m.load.latency_us["p99"] / 1000, ".2f"),
    "CPU µs/call": _of("ours", lambda m: m.server_cpu_us, ".0f"),
    "no-op CPU": _of("noop", lambda m: m.server_cpu_us, ".0f"),
    "reply bytes": _of("ours", lambda m: m.load.bytes_per_call, ",.0f"),
    "no-op bytes": _of("noop", lambda m: m.load.bytes_per_call, ",.0f"),
    "generator cores": _of("noop", lambda m: m.load.cpu_per_second, ".2f"),
}


def table(results: dict[tuple[str, int], list[Pair]], *, markdown: bool) -> str:
    """One line for each scenario and number of callers; figures are medians of the rounds."""
    rows = [["RPC", "callers", *COLUMNS]]
    for (name, callers), rounds in results.items():
        rows.append([name, str(callers), *(cell(rounds) for cell in COLUMNS.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    if not markdown:
        return "\n".join("  ".join(line) for line in lines)
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def machine() -> str:
    return (
        f"{os.cpu_count()} cores ({_processor()}), {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, grpcio {grpc.__version__}, "
        f"SQLite {sqlite3.sqlite_version}"
    )


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def generator_share(results: dict[tuple[str, int], list[Pair]]) -> str:
    """Against the no-op server, where the generator works hardest."""
    busiest = max(pair.noop.load.cpu_per_second for rounds in results.values() for pair in rounds)
    return f"load generator: at most {busiest:.2f} of one core"


def errors(results: dict[tuple[str, int], list[Pair]]) -> list[str]:
    """What went wrong: calls that failed, and windows in which nothing ended."""
    found = []
    for (name, callers), rounds in results.items():
        for pair in rounds:
            for server, load in (("ours", pair.ours.load), ("no-op", pair.noop.load)):
                where = f"{name}, {callers} callers, {server}"
                if load.errors:
                    found.append(f"{where}: {load.errors} {load.first_errors}")
                elif not load.calls:
                    found.append(f"{where}: no call ended while it was measured")
    return found
