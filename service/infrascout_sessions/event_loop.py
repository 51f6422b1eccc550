"""The server's event loop: while events come thick and fast, it looks for the next one a moment
longer before it sleeps.

A processor with nothing to do is given away, by the host of a virtual one at once; to get it back,
with the data of others in its caches, takes as long as a short wait. Who waits for longer, for a
commit or for the next caller, sleeps at once: looking would take the processor from others.
"""

import asyncio
import os
import selectors
from collections.abc import Coroutine
from time import perf_counter
from typing import Any, Final, TypeVar

T = TypeVar("T")

_MOMENT_SECONDS: Final = 0.0001
_LONG_SECONDS: Final = 0.0004
# So many waits in a row must have been short.
_SHORT_WAITS: Final = 16


class _Selector(selectors.DefaultSelector):
    _short_waits = 0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        began = perf_counter()
        if self._short_waits >= _SHORT_WAITS:
            while perf_counter() - began < _MOMENT_SECONDS:
                events = super().select(0)
                if events:
                    return events
        events = super().select(timeout)
        self._short_waits = 0 if perf_counter() - began > _LONG_SECONDS else self._short_waits + 1
        return events


def _new() -> asyncio.AbstractEventLoop:
    # With one processor, it is needed by who is to send the next event.
    return asyncio.SelectorEventLoop(_Selector() if (os.cpu_count() or 1) > 1 else None)


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run` does, on such a loop."""
    with asyncio.Runner(loop_factory=_new) as runner:
        return runner.run(main)
