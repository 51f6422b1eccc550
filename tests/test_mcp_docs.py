from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

import mcp_transcript
from assistants import at_url, http_process
from harness import CONSOLE_SCRIPT


async def test_the_example_prompts_are_shown_as_they_are(tmp_path: Path) -> None:
    shown = await mcp_transcript.transcript(tmp_path)
    assert mcp_transcript.documented() == shown, "python tests/mcp_transcript.py --write"


def _servers() -> list[dict[str, Any]]:
    snippets = list(mcp_transcript.snippets())
    found = [
        server
        for snippet in snippets
        for key in ("mcpServers", "servers")
        for server in snippet.get(key, {}).values()
    ]
    assert len(found) >= len(snippets)
    return found


@pytest.mark.parametrize(
    ("arguments", "environment"),
    sorted(
        {
            (tuple(server["args"]), tuple(sorted(server.get("env", {}))))
            for server in _servers()
            if "command" in server
        }
    ),
)
async def test_the_configurations_for_stdio_start_the_tools(
    arguments: tuple[str, ...], environment: tuple[str, ...]
) -> None:
    known = {"INFRASCOUT_TOKEN", "INFRASCOUT_ADDRESS"}
    assert set(environment) <= known
    parameters = StdioServerParameters(
        command=str(CONSOLE_SCRIPT),
        args=list(arguments),
        env={name: "x" if name == "INFRASCOUT_TOKEN" else "127.0.0.1:1" for name in environment},
    )
    async with Client(parameters) as client:
        assert len((await client.list_tools()).tools) >= 5


async def test_the_configurations_name_what_is_served() -> None:
    servers = _servers()
    assert {server["url"] for server in servers if "url" in server} == {"http://127.0.0.1:8000/mcp"}
    for server in servers:
        if "command" in server:
            assert server["command"].endswith("/infrascout-sessions")
        else:
            assert server["headers"]["Authorization"].startswith("Bearer ")
    async with http_process("127.0.0.1:1") as url, at_url(url, token="t") as assistant:
        assert url.endswith("/mcp")
        assert len(await assistant.tools()) == 5
