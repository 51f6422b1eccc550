"""Several servers on one port, where PostgreSQL is behind them and the machine has the cores.

Each is a process of its own that listens with SO_REUSEPORT; the kernel deals out connections.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog

from infrascout_sessions.config import Settings
from infrascout_sessions.server import cannot_listen, require_free

_log = structlog.get_logger()

SHARE_PORT: Final = "--share-port"
"""Tells a worker that it has the port with others."""

_RESTART_SECONDS: Final = 1.0
# How long a worker may take to end beyond what calls under way get.
_CLOSING_SECONDS: Final = 5.0


def _reserve(listen: str) -> tuple[socket.socket, str]:
    """Hold the port for the workers; gives the address with its number.

    The socket does not listen, and gets no connection. Raises `ListenError`.
    """
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Whoever shares the port already would share it with us, too.
        require_free(listen)
        held = socket.socket(family)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, int(port)))
    except (OSError, ValueError, OverflowError) as error:
        raise cannot_listen(listen) from error
    return held, f"{listen.rpartition(':')[0]}:{held.getsockname()[1]}"


def _of_worker(number: int, address: str) -> str:
    """Where a worker serves its metrics: those after the first on the ports that follow."""
    host, _, port = address.rpartition(":")
    # What is no port, the worker refuses.
    return f"{host}:{int(port) + number - 1}" if port.isdecimal() and int(port) else address


async def run(settings: Settings, arguments: Sequence[str], ready: Callable[[int], None]) -> int:
    """Run `serve` with these arguments in each worker until SIGTERM or SIGINT; give an exit code.

    A worker that dies is started again; one that cannot start ends them all. A second signal does
    not wait for calls under way. Raises `ListenError`.
    """
    held, address = _reserve(settings.listen)
    patience_seconds = settings.shutdown_grace_seconds + _CLOSING_SECONDS
    stop, kill = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def handle_with(handler: Callable[[], None]) -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, handler)

    def signalled() -> None:
        stop.set()
        handle_with(kill.set)

    handle_with(signalled)
    command = [sys.executable, "-m", "infrascout_sessions", "serve", *arguments]
    command += ["--listen", address, SHARE_PORT]
    with held:
        started = [asyncio.Event() for _ in range(settings.workers)]
        workers = [
            asyncio.create_task(
                _keep_running(
                    [*command, "--metrics-listen", _of_worker(number, settings.metrics_listen)],
                    *(event, stop, kill, patience_seconds, number),
                )
            )
            for number, event in enumerate(started, 1)
        ]
        everybody = asyncio.create_task(_all_set(started))
        first: list[asyncio.Future[Any]] = [everybody, *workers]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if everybody.done():
            ready(held.getsockname()[1])
            await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
        everybody.cancel()
        stop.set()
        return max(await asyncio.gather(*workers))


async def _all_set(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def _keep_running(
    command: Sequence[str],
    started: asyncio.Event,
    stop: asyncio.Event,
    kill: asyncio.Event,
    patience_seconds: float,
    number: int,
) -> int:
    """One worker, started again when it dies, until `stop`; gives its exit code.

    It is killed if it has not ended so long after `stop`, or once `kill` is set.
    """
    stopped = asyncio.create_task(stop.wait())
    while True:
        process = await asyncio.create_subprocess_exec(
            *command,
            # A worker ends when this closes: it does not outlive us.
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        if process.stdin is None or process.stdout is None:
            raise AssertionError
        # What it prints when it serves is printed once, for all.
        reading = asyncio.create_task(process.stdout.readline())
        ended = asyncio.create_task(process.wait())
        await asyncio.wait([reading, ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        serves = reading.done() and bool(reading.result())
        if serves:
            started.set()
            await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            # Not by a signal: it may have had one with us, and the second one ends it at once.
            process.stdin.close()
            killed = asyncio.create_task(kill.wait())
            await asyncio.wait(
                [ended, killed], timeout=patience_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            killed.cancel()
            if not ended.done():
                _log.error("worker did not stop, killing it", worker=number)
                process.kill()
        code = await ended
        reading.cancel()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if stop.is_set():
            # One that did not serve yet is ended by the signal, and has nothing to lose.
            return max(code, 1) if code and serves else 0
        if not started.is_set():
            _log.error("worker ended before it served, stopping", worker=number, how=how)
            return max(code, 1)
        _log.error("worker ended, starting another", worker=number, how=how)
        await asyncio.wait([stopped], timeout=_RESTART_SECONDS)
        if stop.is_set():
            return 0
