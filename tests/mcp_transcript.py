"""The example prompts of the session tools, as docs/mcp.md shows them.

`python tests/mcp_transcript.py --write` writes them there; a test compares.
"""

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from assistants import Assistant, over_stdio, text
from harness import Client, FrozenClock, at, record, register_agent, serving
from infrascout.sessions.v1.execution_pb2 import Output

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "mcp.md"
_BLOCK: Final = re.compile(r"(?s)(?<=<!-- transcript: begin -->\n).*(?=<!-- transcript: end -->)")

SESSION_ID: Final = "sess_8c4d9e2f"

SUMMARY: Final = (
    "Reviewed the accounts and the listening ports of web-1. PostgreSQL listens on all interfaces "
    "(tcp/5432, high): bind it to loopback. The log of sudo could not be read, so privileged use "
    "is still open."
)


class _Ids:
    """Ids as the document of the tools has them."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def __call__(self, prefix: str) -> str:
        return SESSION_ID if prefix == "sess_" else f"{prefix}{next(self._numbers):08x}"


async def _work(client: Client, clock: FrozenClock) -> None:
    """What the agent's own tools record in the session."""
    listening = "State  Recv-Q Send-Q Local Address:Port\nLISTEN 0      244    0.0.0.0:5432\n"
    for command, step, output, error_output, exit_code in (
        ("id", "1.1 accounts", "uid=0(root) gid=0(root)\n", "", 0),
        ("ss -tln", "2.1 listening ports", listening, "", 0),
        ("cat /var/log/sudo.log", "3.1 privileges", "", "No such file or directory\n", 1),
    ):
        clock.advance(12)
        seconds = clock.microseconds / 1_000_000 - at(0).seconds
        await record(
            client,
            SESSION_ID,
            command=command,
            step=step,
            output=Output(text=output),
            error_output=Output(text=error_output),
            exit_code=exit_code,
            start_time=at(seconds - 0.25),
            end_time=at(seconds),
        )


async def _shown(assistant: Assistant, prompt: str, tool: str, **arguments: Any) -> str:
    result = await assistant.call(tool, **arguments)
    called = json.dumps(arguments, indent=2, ensure_ascii=False)
    return f"> {prompt}\n\n`{tool}`\n\n```json\n{called}\n```\n\n```text\n{text(result)}\n```\n"


async def transcript(folder: Path) -> str:
    """Each prompt, the call it leads to, and what the model reads."""
    clock = FrozenClock()
    url = f"sqlite+aiosqlite:///{folder / 'sessions.db'}"
    async with (
        serving(url, clock=clock, ids=_Ids()) as client,
        over_stdio(client.address) as assistant,
    ):
        await register_agent(client, "ag_3f8a1c2d")
        start = {"agent_id": "ag_3f8a1c2d", "playbook": "security-review"}
        shown = [
            await _shown(
                assistant,
                "Start a security review session on agent ag_3f8a1c2d.",
                "session_start",
                **start,
            )
        ]
        await _work(client, clock)
        shown += [
            await _shown(
                assistant,
                f"List every command executed during session {SESSION_ID}.",
                "session_list_executions",
                session_id=SESSION_ID,
            ),
            await _shown(
                assistant,
                f"What's the status of session {SESSION_ID}?",
                "session_get",
                session_id=SESSION_ID,
            ),
            await _shown(
                assistant,
                "Start another one on ag_3f8a1c2d, for hardening.",
                "session_start",
                **{**start, "playbook": "hardening"},
            ),
        ]
        clock.advance(30)
        shown += [
            await _shown(
                assistant,
                "We're done — submit the session and summarize the findings.",
                "session_submit",
                session_id=SESSION_ID,
                summary=SUMMARY,
            ),
            await _shown(
                assistant,
                "Show me all sessions awaiting review.",
                "session_list",
                status="pending_review",
            ),
        ]
    return "\n" + "\n".join(shown) + "\n"


def documented() -> str:
    """The transcript that the document has."""
    found = _BLOCK.search(DOCUMENT.read_text())
    assert found is not None
    return found[0]


def snippets() -> Iterator[dict[str, Any]]:
    """The configurations that the document has, outside the transcript."""
    for block in re.findall(r"(?s)```json\n(.*?)```", _BLOCK.sub("", DOCUMENT.read_text())):
        yield json.loads(block)


def _write() -> None:
    with TemporaryDirectory() as folder:
        shown = asyncio.run(transcript(Path(folder)))
    DOCUMENT.write_text(_BLOCK.sub(lambda _: shown, DOCUMENT.read_text()))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/mcp_transcript.py --write")
    _write()
