"""The session tools as a process of its own, and the official SDK's client of them."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, Tool

from harness import CONSOLE_SCRIPT, clean_environment

MODES = ("auto", "legacy")
"""How the client says hello: as of 2026-07-28, or by the handshake that most clients still use."""


@dataclass(frozen=True)
class Assistant:
    """A client of the tools."""

    client: Client

    async def tools(self) -> dict[str, Tool]:
        """The tools that are offered."""
        return {tool.name: tool for tool in (await self.client.list_tools()).tools}

    async def call(self, tool: str, **arguments: Any) -> CallToolResult:
        """Call a tool; the SDK checks the structured result against the schema."""
        result = await self.client.call_tool(tool, arguments)
        assert isinstance(result, CallToolResult)
        return result

    async def ask(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The structured result of a call that must be answered."""
        result = await self.call(tool, **arguments)
        assert not result.is_error, text(result)
        assert isinstance(result.structured_content, dict)
        return result.structured_content

    async def refused(self, tool: str, **arguments: Any) -> str:
        """The text of a call that must be refused."""
        result = await self.call(tool, **arguments)
        assert result.is_error, text(result)
        return text(result)


def text(result: CallToolResult) -> str:
    """What a model reads."""
    [content] = result.content
    assert content.type == "text"
    return content.text


def characters(result: CallToolResult) -> int:
    """How many characters a result has in JSON, as it is sent."""
    sent = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    return len(json.dumps(sent, ensure_ascii=False, separators=(",", ":")))


@asynccontextmanager
async def over_stdio(
    address: str,
    *arguments: str,
    mode: str = "auto",
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Assistant]:
    """The tools over stdio, as a client starts them."""
    parameters = StdioServerParameters(
        command=str(CONSOLE_SCRIPT),
        args=["mcp", "--address", address, *arguments],
        env=dict(environment or {}),
    )
    async with Client(parameters, mode=mode) as client:
        yield Assistant(client)


@asynccontextmanager
async def http_process(address: str, *arguments: str) -> AsyncIterator[str]:
    """The tools over HTTP on a free port; gives their URL. Stopped by SIGTERM, with code 0."""
    process = await asyncio.create_subprocess_exec(
        *(str(CONSOLE_SCRIPT), "mcp", "--http", "127.0.0.1:0", "--address", address),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=sys.stderr,
        env=clean_environment(),
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            said = (await process.stdout.readline()).decode()
        yield said.split()[-1]
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(15):
            code = await process.wait()
    assert code == 0


@asynccontextmanager
async def at_url(url: str, *, mode: str = "auto", token: str = "") -> AsyncIterator[Assistant]:
    """A client of the tools that are served there."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield Assistant(client)


@asynccontextmanager
async def over_http(address: str, *arguments: str, mode: str = "auto") -> AsyncIterator[Assistant]:
    """The tools over HTTP."""
    async with http_process(address, *arguments) as url, at_url(url, mode=mode) as assistant:
        yield assistant


TRANSPORTS = {"stdio": over_stdio, "http": over_http}
