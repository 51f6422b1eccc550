"""Runs the demo, on a server of its own or on one that is there."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Final

import grpc
from rich.console import Console

from infrascout_sessions.client import AddressError, CallError, SessionsClient, open_channel
from infrascout_sessions.demo.assessment import assess
from infrascout_sessions.demo.narrative import print_record

_START_SECONDS: Final = 20.0

_DEADLINE_SECONDS: Final = 5.0


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to do."""


async def run(address: str) -> None:
    """Assess this host and print the record; on a server of its own if `address` is empty.

    Raises `DemoError`.
    """
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if address:
        await _assess_and_print(console, address)
        console.print(f"\nThe session stays at {address}, and waits there for its review.")
    else:
        async with _own_server() as own_address:
            await _assess_and_print(console, own_address)
        console.print(
            "\nThat server and its database are gone. To keep a session: `make run`, and then\n"
            "`.venv/bin/infrascout-sessions demo --address 127.0.0.1:50051` in another terminal."
        )


async def _assess_and_print(console: Console, address: str) -> None:
    console.print(f"Running read-only commands on this host, recorded at {address} …", style="dim")
    try:
        async with open_channel(address) as channel:
            client = SessionsClient.of(channel, deadline_seconds=_DEADLINE_SECONDS)
            await print_record(console, client, await assess(client))
    except AddressError as error:
        raise DemoError(str(error)) from error
    except CallError as error:
        if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
            raise DemoError(
                f"no server answers at {address} ({error.message}): start one with `make run`, "
                "or leave --address out"
            ) from error
        raise DemoError(f"{error.message} ({error.code.name}, from {address})") from error


@asynccontextmanager
async def _own_server() -> AsyncIterator[str]:
    """A server on a temporary database, for as long as the block takes; gives its address."""
    command = (sys.executable, "-m", "infrascout_sessions", "serve", "--listen", "127.0.0.1:0")
    options = ("--database-url", "sqlite+aiosqlite:///sessions.db", "--log-level", "warning")
    with TemporaryDirectory(prefix="infrascout-demo-") as folder:
        process = await asyncio.create_subprocess_exec(
            *command,
            *options,
            cwd=folder,
            env={k: v for k, v in os.environ.items() if not k.startswith("INFRASCOUT_")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            yield await _announced_address(process)
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _announced_address(process: asyncio.subprocess.Process) -> str:
    """The address that a server says it serves on. Raises `DemoError` if it ends instead."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    said = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(_START_SECONDS):
            async for line in process.stdout:
                if found := re.search(rb"127\.0\.0\.1:\d+", line):
                    return found[0].decode()
                said += line
    reason = said.decode(errors="replace").strip() or f"nothing within {_START_SECONDS:g} s"
    raise DemoError(f"the server did not start; it said:\n{reason}")
