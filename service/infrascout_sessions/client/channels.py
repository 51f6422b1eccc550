"""Channels: where to, over what, and what must not travel in the clear."""

from ipaddress import ip_address

import grpc

# A server that is back is found within two seconds; gRPC by itself waits up to two minutes.
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Despite its name: how long an attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


class AddressError(ValueError):
    """An address that cannot be used as asked; the text says why, and what to do."""


def is_loopback(host: str) -> bool:
    """Whether packets to this host, a name or an address, stay on this machine."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def stays_here(address: str) -> bool:
    """Whether a gRPC address is of this machine: loopback, or a Unix socket."""
    return address.startswith("unix:") or is_loopback(address.rpartition(":")[0])


def check_address(address: str, *, tls: bool, token: str) -> None:
    """Raise `AddressError` for what is none, or where the token would travel in the clear."""
    if not address.startswith("unix:"):
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isascii() and port.isdigit() and int(port) < 65536):
            raise AddressError(f"{address!r} is no address: HOST:PORT or unix:PATH is")
    if token and not tls and not stays_here(address):
        raise AddressError(
            f"the token would travel to {address} unencrypted: use TLS, or a tunnel to 127.0.0.1"
        )


def open_channel(
    address: str,
    *,
    tls: bool = False,
    root_certificates: bytes | None = None,
    token: str = "",
) -> grpc.aio.Channel:
    """A channel to the server at HOST:PORT or unix:PATH; it connects when it is used.

    With `tls` the server must prove its name, by `root_certificates` (PEM) or else by the
    authorities that gRPC trusts. Name the `token` that calls will carry: `AddressError` is raised
    where it would leave this machine unencrypted.
    """
    check_address(address, tls=tls, token=token)
    local = stays_here(address)
    # A proxy for the web is none for this machine's own ports.
    options = (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if local else _OPTIONS
    if not tls:
        return grpc.aio.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(root_certificates=root_certificates)
    return grpc.aio.secure_channel(address, credentials, options=options)
