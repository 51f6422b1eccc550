"""Writes RESULTS.md, the chart and the README's tables from results.json."""

import json
import re
from pathlib import Path
from typing import Any

from bench import chart, goals, report, tables

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"


def main() -> None:
    publish(json.loads(RESULTS.read_text()), FOLDER)


def publish(results: dict[str, Any], folder: Path) -> None:
    (folder / "RESULTS.md").write_text(text(results))
    if folder == FOLDER:
        readme = FOLDER.parent / "README.md"
        readme.write_text(_SECTION.sub(_summary(results), readme.read_text()))
    calls = results.get("sqlite", {}).get("calls")
    if calls and {row["rpc"] for row in calls["rows"]} >= chart.RPCS:
        (folder / "throughput.svg").write_text(chart.throughput(calls))


_SECTION = re.compile(r"(?<=<!-- benchmark: begin -->\n).*(?=<!-- benchmark: end -->)", re.DOTALL)


def _summary(results: dict[str, Any]) -> str:
    parts = [
        "`make bench` (it needs Go for its load generator) measures the service as it is shipped"
        " next to a bare grpc.aio server that does nothing.",
        INTRODUCTION.format(**results["run"], folder="bench/"),
    ]
    for kind, title in goals.TITLES.items():
        if "calls" in results.get(kind, {}):
            parts.append(f"**{title}**\n\n{report.calls_in_short(results[kind]['calls'])}")
    parts.append(
        "[`bench/RESULTS.md`](bench/RESULTS.md) has the rest: streams, growth to 1,000,000"
        " sessions, followers, and each goal with what was measured, met or missed."
    )
    return "\n\n".join(parts) + "\n"


def text(results: dict[str, Any]) -> str:
    parts = [INTRODUCTION.format(**results["run"], folder="")]
    for kind, title in goals.TITLES.items():
        parts += [
            f"**{heading.format(database=title)}**\n\n{of_part(results[kind][part], title)}"
            for part, (heading, of_part) in SECTIONS.items()
            if part in results.get(kind, {})
        ]
    parts.append(f"**The goals**\n\n{goals.as_table(results)}")
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """\
Medians of {rounds} interleaved rounds of {seconds:g} s each, every figure next to its ceiling \
from the same round. Durable: a write is answered after its fsync. \
`{command}` made this of {commit}, on {machine}{postgres}; the load generator used at most \
{generator_cores:.2f} of one core. \
[bench/README.md]({folder}README.md) says what is compared with what, and what was found.

![Throughput and p99 latency against callers]({folder}throughput.svg)"""


def _calls(result: dict[str, Any], _title: str) -> str:
    ceilings = result["ceilings"]
    rate = ceilings.get("raw_rows_per_second")
    raw = (
        f" Raw SQLite commits {rate:,.0f} a second of RecordExecution's rows, one a transaction."
        if rate
        else ""
    )
    peak = {who: of / 1e6 for who, of in result["peak_bytes"].items()}
    return (
        f"{report.calls(result)}\n\nPeak memory: ours {peak['ours']:.0f} MB,"
        f" no-op {peak['noop']:.0f} MB."
        f" An fsync of 4 KiB: {ceilings['fsync_us']:,.0f} µs.{raw}"
    )


SECTIONS: dict[str, Any] = {
    "calls": ("Calls on {database} against a server that does nothing", _calls),
    "bulk": ("Fifty executions a message, {database}", report.bulk),
    "reading": (
        "Reading, {database}",
        lambda result, _: (
            f"{report.streams(result['streams'])}\n\n{tables.long_sessions(result['long'])}"
        ),
    ),
    "growth": ("Growth, {database}", lambda result, _: tables.growth(result)),
    "followers": ("Followers, {database}", lambda result, _: tables.followers(result)),
}


if __name__ == "__main__":
    main()
