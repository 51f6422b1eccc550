"""`make bench`: ours as it is shipped next to its ceilings, in interleaved rounds."""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import bulk, calls, databases, followers, generator, goals, growth, publish, reading
from bench.context import Context
from bench.report import machine
from bench.servers import ROOT

PARTS: dict[str, Callable[[Context], Any]] = {
    "calls": calls.measure,
    "bulk": bulk.measure,
    "reading": reading.measure,
    "growth": growth.measure,
    "followers": followers.measure,
}
OF_DATABASE = {"sqlite": tuple(PARTS), "postgres": ("calls", "bulk", "growth")}


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    generator.build()
    file: Path = options.results
    results = json.loads(file.read_text()) if file.exists() and options.add else {}
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="infrascout-bench-", dir=options.folder)
            )
        )
        for kind in options.database:
            for _ in _measure(options, kind, folder, results):
                # Part by part, should a later one fail.
                results["run"] = _run(options, results)
                file.write_text(json.dumps(results, indent=1) + "\n")
    publish.publish(results, file.parent)
    print(goals.as_table(results))
    problems = list(_errors(results))
    print("".join(f"ERROR {problem}\n" for problem in problems), end="", file=sys.stderr)
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    kinds = list(OF_DATABASE)
    parser.add_argument("--database", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rpc", nargs="+", default=[], help="only these unary calls")
    parser.add_argument("--callers", nargs="+", type=int, default=[], help="only so many at once")
    parser.add_argument(
        "--results", type=Path, default=publish.RESULTS, help="RESULTS.md comes beside it"
    )
    parser.add_argument("--add", action="store_true", help="keep the parts that stand there")
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure; else the usual for temporary files"
    )
    return parser.parse_args()


def _measure(
    options: argparse.Namespace, kind: str, folder: Path, results: dict[str, Any]
) -> Iterator[None]:
    parts = [part for part in OF_DATABASE[kind] if part in options.part]
    if not parts:
        return
    with ExitStack() as stack:
        if kind == "postgres":
            database: Any = stack.enter_context(databases.postgres())
            results["postgres_version"] = database.version()
        else:
            database = databases.Sqlite(folder)
        context = Context(
            options.rounds,
            options.seconds,
            folder,
            database,
            tuple(options.rpc),
            tuple(options.callers),
        )
        for part in parts:
            start = time.monotonic()
            results.setdefault(kind, {})[part] = PARTS[part](context)
            context.say(f"{part} took {time.monotonic() - start:.0f} s")
            yield


def _run(options: argparse.Namespace, results: dict[str, Any]) -> dict[str, Any]:
    version = results.get("postgres_version")
    return {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "commit": _commit(),
        "machine": machine(),
        "postgres": f", PostgreSQL {version}" if version else "",
        "generator_cores": max((load["cpu_per_second"] for _, load in _loads(results)), default=0),
    }


def _commit() -> str:
    command = ["git", "log", "-1", "--format=%h"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "an unknown commit"


def _loads(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the generator reported, and where."""
    for kind in OF_DATABASE:
        parts = results.get(kind, {})
        for row in parts.get("calls", {}).get("rows", []):
            for one in row["rounds"]:
                for who, measured in one.items():
                    yield f"{kind}, {row['rpc']}, {row['callers']} callers, {who}", measured["load"]
        for row in parts.get("reading", {}).get("streams", []):
            for one in row["rounds"]:
                for who, load in one.items():
                    yield f"{kind}, ListExecutions of {row['executions']}, {who}", load


def _errors(results: dict[str, Any]) -> Iterator[str]:
    """What went wrong: calls that failed, and windows in which nothing ended."""
    for where, load in _loads(results):
        if load["errors"]:
            yield f"{where}: {load['errors']} {load['first_errors']}"
        elif not load["calls"]:
            yield f"{where}: no call ended while it was measured"
    for kind in OF_DATABASE:
        for one in results.get(kind, {}).get("bulk", {}).get("rounds", []):
            if one["ours"]["errors"]:
                yield f"{kind}, RecordExecutions: {one['ours']['first_errors']}"


if __name__ == "__main__":
    sys.exit(main())
