"""Turns results into Markdown tables; every figure is a median of the rounds."""

import os
import platform
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import grpc

Round = dict[str, Any]
Rounds = Sequence[Round]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned Markdown; all columns but the first are numbers."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    cells = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [cells[0], rule, *cells[1:]])


def ratios(rounds: Rounds, of: Callable[[Any], float], base: str = "noop") -> list[float]:
    """Ours as a share of another, round by round."""
    return [of(one["ours"]) / of(one[base]) if of(one[base]) else 0.0 for one in rounds]


def ratio(rounds: Rounds, of: Callable[[Any], float], base: str = "noop") -> float:
    return median(ratios(rounds, of, base))


def middle(rounds: Rounds, who: str, of: Callable[[Any], float]) -> float:
    return median(of(one[who]) for one in rounds)


def call_rate(one: Any) -> float:
    return float(one["load"]["per_second"])


def stream_rate(callers: int) -> Callable[[Any], float]:
    """Streams a second. Of one caller by their median time: few end in a window, and whether the
    last one still does is chance.
    """
    if callers == 1:
        return lambda one: 1e6 / float(one["latency_us"]["p50"] or 1e12)
    return lambda one: float(one["per_second"])


def row_rate(one: Any) -> float:
    return float(one["rows_per_second"])


def spread(values: Sequence[float]) -> str:
    return f"{min(values):.0%}–{max(values):.0%}"  # noqa: RUF001


def _latency(share: str) -> Callable[[Any], float]:
    return lambda one: float(one["load"]["latency_us"][share]) / 1000


def _bytes(one: Any) -> float:
    return float(one["load"]["bytes"] / max(one["load"]["calls"], 1))


def _cpu(one: Any) -> float:
    return float(one["server_cpu_us"])


# Title, whose, what of a measurement, how it is written.
COLUMNS: tuple[tuple[str, str, Callable[[Any], float], str], ...] = (
    ("ours /s", "ours", call_rate, ",.0f"),
    ("no-op /s", "noop", call_rate, ",.0f"),
    ("p50 ms", "ours", _latency("p50"), ".2f"),
    ("p99 ms", "ours", _latency("p99"), ".2f"),
    ("no-op p50", "noop", _latency("p50"), ".2f"),
    ("no-op p99", "noop", _latency("p99"), ".2f"),
    ("CPU µs/call", "ours", _cpu, ".0f"),
    ("no-op CPU", "noop", _cpu, ".0f"),
    ("bytes", "ours", _bytes, ",.0f"),
    ("no-op bytes", "noop", _bytes, ",.0f"),
)


def calls_in_short(result: dict[str, Any]) -> str:
    """The columns that the README has room for."""
    return calls(result, COLUMNS[:4])


def calls(result: dict[str, Any], columns: Sequence[Any] = COLUMNS) -> str:
    head = ["RPC", "callers", "ours/no-op", "rounds", *(column[0] for column in columns)]
    return table(
        head,
        (
            [
                row["rpc"],
                str(row["callers"]),
                f"{ratio(row['rounds'], call_rate):.0%}",
                spread(ratios(row["rounds"], call_rate)),
                *(format(middle(row["rounds"], who, of), as_) for _, who, of, as_ in columns),
            ]
            for row in result["rows"]
        ),
    )


def bulk(result: dict[str, Any], database: str) -> str:
    rounds = result["rounds"]
    names = {
        "ours": "`RecordExecutions`, one client",
        "raw": f"raw {database} loop, the same rows",
        "flat": "raw SQLite loop, one flat table",
        "noop": "no-op `RecordExecutions`",
    }
    rows = []
    for name, text in names.items():
        if not rounds[0].get(name):
            continue
        own = name == "ours"
        rows.append(
            [
                text,
                f"{middle(rounds, name, row_rate):,.0f}",
                "" if own else f"{ratio(rounds, row_rate, name):.0%}",
                "" if own else spread(ratios(rounds, row_rate, name)),
                *_stream_cells(rounds, name),
            ]
        )
    head = ["what", "rows/s", "ours/it", "rounds", "message p50 ms", "p99 ms", "CPU µs/row"]
    return table(head, rows)


def _stream_cells(rounds: Rounds, name: str) -> list[str]:
    if "latency_us" not in rounds[0][name]:
        return ["", "", ""]
    return [
        f"{middle(rounds, name, lambda one: one['latency_us']['p50'] / 1000):.1f}",
        f"{middle(rounds, name, lambda one: one['latency_us']['p99'] / 1000):.1f}",
        f"{middle(rounds, name, lambda one: one['cpu_us_per_row']):.1f}",
    ]


def streams(result: list[dict[str, Any]]) -> str:
    head = [
        *("ListExecutions of", "callers", "ours/no-op", "rounds", "ours executions/s"),
        *("no-op executions/s", "messages", "no-op messages", "bytes", "no-op bytes"),
    ]
    rows = []
    for of in result:
        rounds, count, rate = of["rounds"], of["executions"], stream_rate(of["callers"])
        cells = [f"{count:,}", str(of["callers"]), f"{ratio(rounds, rate):.0%}"]
        cells.append(spread(ratios(rounds, rate)))
        cells += [f"{middle(rounds, who, rate) * count:,.0f}" for who in ("ours", "noop")]
        for field in ("messages", "bytes"):
            cells += [
                f"{middle(rounds, who, lambda one, f=field: one[f] / max(one['calls'], 1)):,.0f}"  # type: ignore[misc]
                for who in ("ours", "noop")
            ]
        rows.append(cells)
    return table(head, rows)


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
