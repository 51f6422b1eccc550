"""What the tools are told, and what of it is refused: before the SDK is even loaded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from infrascout_sessions.client.channels import check_address, is_loopback, stays_here

# What RFC 6750 allows a bearer token to be.
TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")

_LOOPBACK_HOSTS: Final = ("127.0.0.1", "localhost", "[::1]")


class SetupError(Exception):
    """The tools cannot be served as asked; the text says why."""


@dataclass(frozen=True)
class HttpSettings:
    """Where HTTP is served, and which Host and Origin headers are accepted."""

    host: str
    port: int
    hosts: tuple[str, ...]
    origins: tuple[str, ...]


@dataclass(frozen=True)
class ToolSettings:
    """What `mcp` can be told; the command line documents each.

    Raises `AddressError` for the address of the service.
    """

    address: str
    http: HttpSettings | None
    token: str
    tls: bool
    root_certificates: bytes | None
    tools: str
    deadline_seconds: float

    def __post_init__(self) -> None:
        check_address(self.address, tls=self.tls, token=self.token)
        if self.token and not TOKEN.fullmatch(self.token):
            raise SetupError("the token is none: it has characters that no bearer token has")
        if self.http is not None and self.token:
            raise SetupError(
                "a token is for stdio: over HTTP every caller brings its own, and nobody gets "
                "that of this process (unset INFRASCOUT_TOKEN)"
            )

    @property
    def may_carry_tokens(self) -> bool:
        """Whether a caller's token can go on to the service: over TLS, or on this machine."""
        return self.tls or stays_here(self.address)


def http_settings(
    address: str,
    *,
    allow_remote: bool,
    allowed_hosts: Sequence[str],
    allowed_origins: Sequence[str],
) -> HttpSettings:
    """Where to serve HTTP; only requests for names that are known here are accepted.

    That stops DNS rebinding: a web page cannot make a browser call these tools by a name of its
    own. Raises `SetupError`.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) < 65536):
        raise SetupError(f"--http {address!r} is no address: HOST:PORT is")
    local = is_loopback(host)
    if not local and not allow_remote:
        raise SetupError(
            f"{host} can be reached from other machines, and this speaks plain HTTP: put a proxy "
            "with TLS before a loopback address, or say --allow-remote"
        )
    if not local and not allowed_hosts:
        raise SetupError(
            "--allow-remote needs --allowed-host NAME[:PORT], the name that clients use: requests "
            "for any other are refused, which stops DNS rebinding"
        )
    own = dict.fromkeys((*_LOOPBACK_HOSTS, host)) if local else ()
    return HttpSettings(
        host=host.strip("[]"),
        port=int(port),
        # By any port, unless one is named.
        hosts=tuple(each for name in (*own, *allowed_hosts) for each in (name, f"{name}:*")),
        origins=(
            *(f"http://{name}{port}" for name in own for port in ("", ":*")),
            *allowed_origins,
        ),
    )
