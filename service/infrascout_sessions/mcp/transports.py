"""How assistants reach the tools: over stdio, or over streamable HTTP."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings

from infrascout_sessions.client import SessionsClient, open_channel
from infrascout_sessions.mcp.more_tools import TOOL_SETS
from infrascout_sessions.mcp.server import build_server
from infrascout_sessions.mcp.settings import HttpSettings, SetupError, ToolSettings

PATH: Final = "/mcp"


async def serve(settings: ToolSettings, ready: Callable[[str], None]) -> None:
    """Serve the tools until stdin ends or a signal comes; over HTTP, `ready` is told the URL.

    Raises `SetupError` if it cannot listen.
    """
    async with open_channel(
        settings.address,
        tls=settings.tls,
        root_certificates=settings.root_certificates,
        token=settings.token,
    ) as channel:
        client = SessionsClient.of(
            channel, token=settings.token, deadline_seconds=settings.deadline_seconds
        )
        server = build_server(
            client, TOOL_SETS[settings.tools], may_carry_tokens=settings.may_carry_tokens
        )
        if settings.http is not None:
            await _serve_http(server, settings.http, ready)
            return
        # The thread that reads stdin cannot be cancelled: Ctrl+C would wait for the next line.
        # Nothing is lost; a write under way happens whole or not at all.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())


async def _serve_http(
    server: Server[dict[str, Any]], settings: HttpSettings, ready: Callable[[str], None]
) -> None:
    # Nothing is kept between requests: replicas need no affinity, and a restart ends nothing.
    app = server.streamable_http_app(
        streamable_http_path=PATH,
        json_response=True,
        stateless_http=True,
        transport_security=TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=list(settings.hosts),
            allowed_origins=list(settings.origins),
        ),
    )
    http = _HttpServer(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
        )
    )
    with _listener(settings) as listener:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, http.stop)
        ready(f"http://{host}:{listener.getsockname()[1]}{PATH}")
        await http.serve(sockets=[listener])


def _listener(settings: HttpSettings) -> socket.socket:
    host, port = settings.host, settings.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise SetupError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


class _HttpServer(uvicorn.Server):
    """uvicorn, ended by our own handlers: its own would raise the signal again at the end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True


def configure_log(level: str) -> None:
    """Log to stderr: stdout is the protocol's."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    # They log every request, some with what is in it.
    for name in ("mcp", "uvicorn", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
