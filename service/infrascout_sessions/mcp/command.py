"""The command `infrascout-sessions mcp`."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_MISSING = (
    "the session tools need the MCP SDK, which is not installed: "
    "in the clone, pip install -e '.[mcp]'"
)


def mcp(
    http: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", help="Serve over streamable HTTP there, instead of over stdio."
        ),
    ] = "",
    address: Annotated[
        str,
        typer.Option(envvar="INFRASCOUT_ADDRESS", help="The service: HOST:PORT or unix:PATH."),
    ] = "127.0.0.1:50051",
    token: Annotated[
        str,
        typer.Option(
            envvar="INFRASCOUT_TOKEN",
            show_envvar=True,
            help="The bearer token to call the service with; over HTTP each caller's own is used.",
        ),
    ] = "",
    tls: Annotated[
        bool, typer.Option("--tls", envvar="INFRASCOUT_TLS", help="Call the service over TLS.")
    ] = False,
    tls_roots: Annotated[
        Path | None,
        typer.Option(
            envvar="INFRASCOUT_TLS_ROOTS",
            help="PEM file of the authorities that the service's certificate must be from.",
        ),
    ] = None,
    tools: Annotated[
        Literal["session", "recording", "all"],
        typer.Option(
            envvar="INFRASCOUT_TOOLS",
            help="The five session tools; with execution_record and insight_save, too; or with "
            "execution_read_output besides.",
        ),
    ] = "session",
    deadline: Annotated[
        float,
        typer.Option(min=0.1, help="How many seconds a call to the service has, repeats included."),
    ] = 10.0,
    allow_remote: Annotated[
        bool,
        typer.Option("--allow-remote", help="With --http: allow a HOST beyond loopback."),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="With --http: a further Host header to accept, NAME[:PORT]; repeat it."),
    ] = None,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(help="With --http: a further Origin to accept, as https://NAME; repeat it."),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(
            envvar="INFRASCOUT_LOG_LEVEL", case_sensitive=False, help="The least that is logged."
        ),
    ] = "info",
) -> None:
    """Offer the session tools to AI assistants, over the Model Context Protocol."""
    from infrascout_sessions.client import AddressError
    from infrascout_sessions.mcp.settings import SetupError, ToolSettings, http_settings

    try:
        settings = ToolSettings(
            address=address,
            http=http_settings(
                http,
                allow_remote=allow_remote,
                allowed_hosts=allowed_host or (),
                allowed_origins=allowed_origin or (),
            )
            if http
            else None,
            # As a file or a secret store gives it, with the end of its line.
            token=token.strip(),
            tls=tls or tls_roots is not None,
            root_certificates=_read(tls_roots),
            tools=tools,
            deadline_seconds=deadline,
        )
        serve, configure_log = _transports()
        configure_log(log_level)
        asyncio.run(serve(settings, _ready))
    except (SetupError, AddressError) as error:
        raise _fail(str(error)) from None


def _transports() -> tuple[Callable[..., Coroutine[Any, Any, None]], Callable[[str], None]]:
    try:
        from infrascout_sessions.mcp.transports import configure_log, serve
    except ModuleNotFoundError as error:
        # It is the SDK, or one of what the SDK brings along.
        if (error.name or "").partition(".")[0] in ("infrascout", "infrascout_sessions"):
            raise
        raise _fail(_MISSING) from None
    return serve, configure_log


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise _fail(f"cannot read {path}: {error.strerror}") from None


def _ready(url: str) -> None:
    typer.echo(f"InfraScout's session tools are served on {url}")


def _fail(text: str) -> typer.Exit:
    typer.echo(f"infrascout-sessions: {text}", err=True)
    return typer.Exit(1)
