"""The program's commands as processes of their own, whether it is installed or on the path."""

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from typing import Final

from harness import clean_environment

PROGRAM: Final = (
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'infrascout-sessions'; "
    "from infrascout_sessions.cli import main; main()",
)


async def start(*arguments: str) -> Process:
    """A command, running."""
    return await asyncio.create_subprocess_exec(
        *PROGRAM, *arguments, stdout=PIPE, stderr=STDOUT, env=clean_environment()
    )


async def run(*arguments: str, seconds: float = 100) -> tuple[int, str]:
    """The exit code of a command, and all it said."""
    process = await start(*arguments)
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, said.decode()
