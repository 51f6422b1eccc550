"""The goals of the benchmark, each with its figure; a miss by up to a tenth is marked as such."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.report import call_rate, middle, ratio, row_rate, stream_rate, table

# With sixteen callers, what the best of comparable servers did a second.
COMPARABLE = {
    "StartSession": 338,
    "RecordExecution": 258,
    "GetSession": 310,
    "ListSessions": 162,
    "SubmitSession": 251,
}
COMPARABLE_READ = 41_000
SHARES = {
    "sqlite": {
        "GetSession": {1: 0.80, 64: 0.60},
        "StartSession": {1: 0.40, 64: 0.50},
        "RecordExecution": {1: 0.40, 64: 0.50},
        "SubmitSession": {1: 0.40, 64: 0.50},
    },
    "postgres": {"GetSession": {1: 0.65, 64: 0.50}, "RecordExecution": {1: 0.25, 64: 0.40}},
}
TITLES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}


@dataclass(frozen=True)
class Goal:
    what: str
    wanted: str
    got: str
    # 1 is just met, more is better.
    reached: float

    @property
    def verdict(self) -> str:
        if self.reached >= 1:
            return "met"
        return "met within a tenth" if self.reached >= 0.9 else "**missed**"


def at_least(what: str, wanted: float, got: float, shape: str) -> Goal:
    return Goal(what, f"≥ {wanted:{shape}}", f"{got:{shape}}", got / wanted)


def at_most(what: str, wanted: float, got: float, shape: str, unit: str) -> Goal:
    text = f"{got:{shape}}{unit}"
    return Goal(what, f"≤ {wanted:{shape}}{unit}", text, wanted / got if got > 0 else 2.0)


def goals(results: dict[str, Any]) -> Iterator[Goal]:
    for kind, title in TITLES.items():
        parts = results.get(kind, {})
        for part, of_part in PARTS.items():
            if part in parts:
                yield from of_part(parts[part], kind, title)


def _calls(result: dict[str, Any], kind: str, title: str) -> Iterator[Goal]:
    for row in result["rows"]:
        wanted = SHARES[kind].get(row["rpc"], {}).get(row["callers"])
        if wanted:
            at_once = f"{row['callers']} caller{'s' * (row['callers'] > 1)}"
            what = f"{title}: {row['rpc']}, {at_once}, of the no-op"
            yield at_least(what, wanted, ratio(row["rounds"], call_rate), ".0%")
    for row in result["rows"]:
        if row["callers"] == 16 and kind == "sqlite" and row["rpc"] in COMPARABLE:
            best = COMPARABLE[row["rpc"]]
            rate = middle(row["rounds"], "ours", call_rate)
            what = f"{title}: {row['rpc']}, 16 callers: {rate:,.0f}/s over the best {best}/s"
            yield at_least(what, 10, rate / best, ".1f")


def _bulk(result: dict[str, Any], _kind: str, title: str) -> Iterator[Goal]:
    what = f"{title}: RecordExecutions, of a raw loop's rows"
    yield at_least(what, 0.5, ratio(result["rounds"], row_rate, "raw"), ".0%")


def _reading(result: dict[str, Any], _kind: str, title: str) -> Iterator[Goal]:
    for row in result["streams"]:
        of_one = stream_rate(row["callers"])
        if row["executions"] == 10_000:
            what = f"{title}: ListExecutions of 10,000, of the same stream without a database"
            yield at_least(what, 0.6, ratio(row["rounds"], of_one), ".0%")
        else:
            rate = middle(row["rounds"], "ours", of_one) * row["executions"]
            what = (
                f"{title}: reading a thousand, {row['callers']} at once: {rate:,.0f} executions/s"
                f" over {COMPARABLE_READ:,}"
            )
            yield at_least(what, 3, rate / COMPARABLE_READ, ".1f")
    long = result["long"]
    first = long["first_message_ms"]
    what = f"{title}: first message of 1,000,000 executions later than of 100"
    yield at_most(what, 5, first["1000000"] - first["100"], ".1f", " ms")
    grew = long["stream"]["memory_grew"] / 1e6
    what = f"{title}: memory grown while 1,000,000 executions are streamed"
    yield at_most(what, 80, grew, ".0f", " MB")


def _growth(result: dict[str, Any], _kind: str, title: str) -> Iterator[Goal]:
    small, *_, large = (str(size) for size in result["sizes"])
    for name, row in result["rows"].items():
        times = row["p50_us"][large] / row["p50_us"][small]
        yield at_most(f"{title}: p50 of {name}, 1,000 to 1,000,000", 1.5, times, ".2f", " times")
    for name, row in result.get("sql", {}).get(large, {}).items():
        yield at_most(f"{title}: {name} in SQL at 1,000,000", 200, row["p50_us"], ".0f", " µs")


def _followers(result: list[dict[str, Any]], _kind: str, title: str) -> Iterator[Goal]:
    for run in result:
        if run["followers"]:
            wrong = len(run["wrong"])
            stalled = f"{run['followers']:,} followers, {run['stalled']} stalled"
            what = f"{title}: {stalled}: streams with a gap, a repeat or a wrong order"
            yield Goal(what, "0", str(wrong), 0.0 if wrong else 1.0)


PARTS: Any = {
    "calls": _calls,
    "bulk": _bulk,
    "reading": _reading,
    "growth": _growth,
    "followers": _followers,
}


def as_table(results: dict[str, Any]) -> str:
    return table(
        ["goal", "wanted", "measured", "verdict"],
        ([goal.what, goal.wanted, goal.got, goal.verdict] for goal in goals(results)),
    )
