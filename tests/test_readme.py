"""The README is true: its walk-through runs as it stands, and its settings are those of `serve`."""

import asyncio
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from harness import Client, clean_environment, get_session, list_executions, list_insights
from infrascout.sessions.v1 import session_pb2
from infrascout_sessions.cli import app

ROOT: Final = Path(__file__).parent.parent
README: Final = (ROOT / "README.md").read_text()
BUF: Final = Path(sys.executable).with_name("buf")
GRPCURL: Final = shutil.which("grpcurl") or str(Path.home() / "go" / "bin" / "grpcurl")

STEPS: Final = (
    *("register", "start", "record", "list", "save", "submit", "awaiting review"),
    *("token", "complete"),
)


def _blocks(section: str) -> list[str]:
    [text] = re.findall(rf"(?ms)^## {re.escape(section)}$(.*?)^## ", README)
    return re.findall(r"(?ms)^```sh\n(.*?)^```$", text)


async def _walk_through(
    call: str, steps: list[str], address: str, database_url: str
) -> list[tuple[int, Any]]:
    """The exit code and the reply of each step, all run in one shell as somebody types them."""
    # A reply ends with a line of NUL and the exit code.
    script = call + "".join(f"{step}printf '\\000%d\\n' $?\n" for step in steps)
    script = script.replace("127.0.0.1:50051", address)
    script = script.replace(".venv/bin/buf", str(BUF)).replace("grpcurl ", f"{GRPCURL} ")
    script = script.replace(
        ".venv/bin/infrascout-sessions", f"{sys.executable} -m infrascout_sessions"
    )
    process = await asyncio.create_subprocess_exec(
        "sh",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=clean_environment(INFRASCOUT_DATABASE_URL=database_url),
    )
    stdout, _ = await process.communicate(script.encode())
    return [
        (int(code), reply) for reply, code in re.findall(r"(?s)(.*?)\0(\d+)\n", stdout.decode())
    ]


@pytest.mark.parametrize(
    "tool",
    [
        "buf",
        pytest.param(
            "grpcurl",
            marks=pytest.mark.skipif(not shutil.which(GRPCURL), reason="grpcurl is not installed"),
        ),
    ],
)
async def test_the_walk_through_works_as_it_stands(
    client: Client, database_url: str, tool: str
) -> None:
    buf, grpcurl, *steps, by_buf, by_grpcurl = _blocks("A session, step by step")
    steps.append(by_buf if tool == "buf" else by_grpcurl)
    assert ("buf curl" in buf, "grpcurl" in grpcurl, len(steps)) == (True, True, len(STEPS))
    steps.insert(STEPS.index("record"), steps[STEPS.index("record")])  # "Call it twice"
    outcomes = await _walk_through(
        {"buf": buf, "grpcurl": grpcurl}[tool], steps, client.address, database_url
    )
    assert [code for code, _ in outcomes] == [0] * len(steps)

    registered, started, recorded, again, listed, saved, submitted, awaiting, _, completed = (
        reply for _, reply in outcomes
    )
    session_id = started.strip()
    session = await get_session(client, session_id)
    assert session.status == session_pb2.SESSION_STATUS_COMPLETED
    assert session.review.reviewer.subject == "alice"
    assert _read(completed)["session"]["status"] == "SESSION_STATUS_COMPLETED"
    assert [e.command for e in await list_executions(client, session_id)] == ["ss -tln"]
    assert [i.key for i in await list_insights(client, session_id)] == ["tcp/5432"]
    assert _read(registered)["agent"]["hostname"] == "web-1"
    assert _read(recorded) == _read(again)
    assert _read(listed)["executions"] == [_read(recorded)["execution"]]
    assert _read(saved)["insight"]["revision"] == 1
    assert _read(submitted)["session"]["status"] == "SESSION_STATUS_PENDING_REVIEW"
    assert _read(awaiting)["sessions"] == [_read(submitted)["session"]]


def _commands() -> list[list[str]]:
    """Every command of this program that the documents show, as arguments."""
    found = []
    for document in (ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")):
        for block in re.findall(r"(?ms)^```sh\n(.*?)^```$", document.read_text()):
            lines = re.sub(r"\\\n", " ", block)
            calls = re.findall(r"(?m)(?:^|\(|bin/)infrascout-sessions ([^)#\n]+)", lines)
            found += [shlex.split(call) for call in calls if not call.rstrip().endswith("--help")]
    return found


@pytest.mark.parametrize("arguments", _commands(), ids=lambda arguments: " ".join(arguments[:3]))
def test_the_commands_that_documents_show_are_taken(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    # Parsed, not run.
    command.make_context(command.name, arguments)


def test_there_are_commands_of_each_kind_to_try() -> None:
    assert {"serve", "token", "mcp"} <= {arguments[0] for arguments in _commands()}


def test_the_rooms_of_contributing_are_those_there_are() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"(?m)^\| (`.+?) \|", text)
    rooms = {name.rstrip("/") for row in rows for name in re.findall(r"`([a-z_/]+)`", row)}
    package = ROOT / "service" / "infrascout_sessions"
    there = [path.name for path in package.iterdir() if not path.name.startswith(("_", "py.typed"))]
    assert rooms == {name.removesuffix(".py") for name in there}
    for path in re.findall(r"`([a-z_]+/[a-z_/]*(?:\.[a-z]+)?)`", text):
        assert any((folder / path).exists() for folder in (ROOT, package)), path


def _read(reply: str) -> Any:
    return json.loads(reply)


def _default(value: object) -> str:
    if value is None or value is False or value == []:
        return ""
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_settings_are_those_of_serve() -> None:
    [text] = re.findall(r"(?ms)^## Settings$(.*?)^## ", README)
    rows = re.findall(r"(?m)^\| `(--\S+)` \| `(\w+)` \| *`?([^|`]*?)`? *\|", text)
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    options = [
        (option.opts[0], option.envvar, _default(option.default))
        for option in command.commands["serve"].params
        if not getattr(option, "hidden", False)
    ]
    assert rows == options
