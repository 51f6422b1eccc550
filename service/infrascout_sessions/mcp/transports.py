"""How assistants reach the tools: over stdio, or over streamable HTTP."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings

from infrascout_sessions.client import SessionsClient, open_channel
from infrascout_sessions.client.channels import is_loopback, stays_here
from infrascout_sessions.mcp.more_tools import TOOL_SETS
from infrascout_sessions.mcp.server import build_server

PATH = "/mcp"

_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class SetupError(Exception):
    """The tools cannot be served as asked; the text says why."""


@dataclass(frozen=True)
class ToolSettings:
    """What `mcp` can be told; the command line documents each."""

    address: str
    http: str = ""
    token: str = ""
    tls: bool = False
    root_certificates: bytes | None = None
    tools: str = "session"
    deadline_seconds: float = 10.0
    allow_remote: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()


async def serve(settings: ToolSettings, ready: Callable[[str], None]) -> None:
    """Serve the tools until stdin ends or a signal comes; over HTTP, `ready` is told the URL.

    Raises `SetupError`, or `AddressError` for the service's address.
    """
    over_http = _Http.of(settings) if settings.http else None
    async with open_channel(
        settings.address,
        tls=settings.tls,
        root_certificates=settings.root_certificates,
        token=settings.token,
    ) as channel:
        client = SessionsClient.of(
            channel, token=settings.token, deadline_seconds=settings.deadline_seconds
        )
        server = build_server(client, TOOL_SETS[settings.tools])
        if over_http is not None:
            await over_http.serve(server, ready)
            return
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())


@dataclass(frozen=True)
class _Http:
    host: str
    port: int
    security: TransportSecuritySettings

    @classmethod
    def of(cls, settings: ToolSettings) -> "_Http":
        host, colon, port = settings.http.rpartition(":")
        if not (host and colon and port.isascii() and port.isdigit() and int(port) < 65536):
            raise SetupError(f"--http {settings.http!r} is no address: HOST:PORT is")
        if settings.token:
            raise SetupError(
                "a token is for stdio: over HTTP every caller brings its own, and nobody gets "
                "that of this process (unset INFRASCOUT_TOKEN)"
            )
        local = is_loopback(host)
        if not local and not settings.allow_remote:
            raise SetupError(
                f"{host} can be reached from other machines, and this speaks plain HTTP: put a "
                "proxy with TLS before a loopback address, or say --allow-remote"
            )
        if not local and not settings.allowed_hosts:
            raise SetupError(
                "--allow-remote needs --allowed-host NAME[:PORT], the name that clients use: "
                "requests for any other are refused, which stops DNS rebinding"
            )
        if not local and not settings.tls and not stays_here(settings.address):
            raise SetupError(
                f"callers' tokens would travel to {settings.address} unencrypted: use --tls"
            )
        names = (*(_LOOPBACK_HOSTS if local else ()), *settings.allowed_hosts)
        security = TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            # With any port, unless one is named.
            allowed_hosts=[each for name in names for each in (name, f"{name}:*")],
            allowed_origins=[
                *(f"http://{name}:*" for name in (_LOOPBACK_HOSTS if local else ())),
                *settings.allowed_origins,
            ],
        )
        return cls(host.strip("[]"), int(port), security)

    async def serve(self, server: Server[dict[str, Any]], ready: Callable[[str], None]) -> None:
        # Nothing is kept between requests: replicas need no affinity, and a restart ends nothing.
        app = server.streamable_http_app(
            streamable_http_path=PATH,
            json_response=True,
            stateless_http=True,
            transport_security=self.security,
        )
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
        )
        http = _HttpServer(config)
        with self._listener() as listener:
            port = listener.getsockname()[1]
            host = f"[{self.host}]" if ":" in self.host else self.host
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, http.stop)
            ready(f"http://{host}:{port}{PATH}")
            await http.serve(sockets=[listener])

    def _listener(self) -> socket.socket:
        try:
            family, _, _, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM
            )[0]
            return socket.create_server(address[:2], family=family)
        except OSError as error:
            raise SetupError(
                f"cannot listen on {self.host}:{self.port}: {error.strerror or error}"
            ) from None


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
