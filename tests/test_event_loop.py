"""The loop that looks for events before it sleeps misses none and is late for none."""

import asyncio
import socket
import threading
from time import monotonic

import pytest

from infrascout_sessions import event_loop


def _echo(end: socket.socket) -> None:
    while data := end.recv(1):
        end.sendall(data)


async def _round_trips(own: socket.socket, count: int) -> None:
    loop = asyncio.get_running_loop()
    for number in range(count):
        await loop.sock_sendall(own, bytes([number % 256]))
        assert await loop.sock_recv(own, 1) == bytes([number % 256])


async def _events_and_timers() -> str:
    own, other = socket.socketpair()
    own.setblocking(False)
    echo = threading.Thread(target=_echo, args=(other,))
    echo.start()
    try:
        for seconds in (0.0, 0.00005, 0.001, 0.05):
            # More short waits than it takes to look, and then one that ends by itself.
            await _round_trips(own, 100)
            began = monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds):
                    await asyncio.get_running_loop().sock_recv(own, 1)
            assert monotonic() - began >= seconds
    finally:
        own.close()
        echo.join()
        other.close()
    return "done"


def test_events_and_timers_come_whether_it_looks_or_sleeps() -> None:
    assert event_loop.run(_events_and_timers()) == "done"


def test_what_ends_the_program_ends_the_loop() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        event_loop.run(fail())


@pytest.mark.parametrize("processors", [1, 2, None])
def test_it_runs_on_any_number_of_processors(
    processors: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    assert event_loop.run(_events_and_timers()) == "done"
