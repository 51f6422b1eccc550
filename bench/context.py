"""What every part of the benchmark is given."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import servers
from bench.databases import Database
from bench.servers import Server


@dataclass(frozen=True)
class Context:
    rounds: int
    seconds: float
    folder: Path
    database: Database
    # Narrow what the unary calls are measured with; empty: everything.
    rpcs: tuple[str, ...] = ()
    callers: tuple[int, ...] = ()

    @contextmanager
    def server(self, name: str) -> Iterator[Server]:
        """Ours, over the database of this name."""
        with servers.ours(self.folder, self.database.url(name)) as server:
            yield server

    def say(self, text: str) -> None:
        print(f"{self.database.kind}: {text}", file=sys.stderr, flush=True)


def turns(number: int, *what: str) -> list[str]:
    """In this order and, every other round, the other way round: a machine that slows down
    harms all of them.
    """
    return list(what if number % 2 == 0 else reversed(what))
