"""TLS from files, which may change while the server runs."""

import ssl
from pathlib import Path
from threading import Lock
from typing import Any

import grpc
import structlog

_log = structlog.get_logger()

_Stamp = tuple[tuple[int, int, int], ...]


class TLSError(Exception):
    """The files are no certificate and key; the text says why."""


class TLSFiles:
    """A certificate, its key and perhaps the CA of clients, each a PEM file.

    They are looked at with each new connection: one that comes after they have changed gets the new
    ones, and those that stand go on. Files that do not fit together, as while they are being
    replaced, leave what was there before in use. TLS is 1.2 or later, which is gRPC's own floor.
    """

    def __init__(self, certificate: str, key: str, client_ca: str) -> None:
        self._paths = [Path(path) for path in (certificate, key, client_ca) if path]
        self._stamp: _Stamp | None = None
        self._refused: _Stamp | None = None
        # gRPC asks from threads of its own.
        self._lock = Lock()

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC takes for a port. Raises `TLSError`."""
        try:
            stamp = self._stamp_now()
            configuration = self._read()
        except (OSError, ValueError) as error:
            raise TLSError(
                f"{', '.join(map(str, self._paths))} cannot be used for TLS: {error}"
            ) from error
        self._stamp = stamp
        return grpc.dynamic_ssl_server_credentials(
            configuration,
            self._changed,
            require_client_authentication=len(self._paths) > 2,
        )

    def _stamp_now(self) -> _Stamp:
        found = [path.stat() for path in self._paths]
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)

    def _read(self) -> Any:
        """Raises `OSError` (as which `ssl` reports what does not fit) or `ValueError`."""
        certificate, key, *client_ca = self._paths
        # gRPC finds fault with files only in the handshake, and then for every client.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password=_no_password)
        for path in client_ca:
            context.load_verify_locations(path)
        return grpc.ssl_server_certificate_configuration(
            [(key.read_bytes(), certificate.read_bytes())],
            root_certificates=client_ca[0].read_bytes() if client_ca else None,
        )

    def _changed(self) -> Any:
        """The new configuration if the files have changed, else None; called by gRPC."""
        with self._lock:
            stamp: _Stamp | None = None
            try:
                stamp = self._stamp_now()
                if stamp in (self._stamp, self._refused):
                    return None
                configuration = self._read()
                # Read while somebody wrote: the next connection looks again.
                if stamp != self._stamp_now():
                    return None
            except (OSError, ValueError) as error:
                _log.error("TLS files not taken", cause=str(error))
                self._refused = stamp
                return None
            self._stamp = stamp
            _log.info("TLS files taken", files=[str(path) for path in self._paths])
            return configuration


def _no_password() -> bytes:
    raise ValueError(
        "the key is encrypted: store it without a password, readable to the server alone"
    )
