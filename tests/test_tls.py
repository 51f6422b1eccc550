"""TLS and client certificates, with a real CA."""

import asyncio
import socket
import ssl
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from callers import HUMAN, calling, make_token
from certificates import CA, Pair
from harness import Client, failed, record, refused, running_session, serving, settings_for
from infrascout.sessions.v1 import actor_pb2
from infrascout.sessions.v1 import agent_service_pb2 as agents_pb
from infrascout.sessions.v1 import session_service_pb2 as session_service
from infrascout_sessions.exposure import ExposureError, is_loopback
from infrascout_sessions.models import Role
from infrascout_sessions.server import ListenError, running

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@dataclass(frozen=True)
class Files:
    """Where a server has its certificate, key and client CA."""

    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        """As settings, without the client CA."""
        return {
            "tls_cert": str(self.folder / "server.pem"),
            "tls_key": str(self.folder / "server.key"),
        }

    def put(self, pair: Pair) -> None:
        """Replace the server's certificate and key, one after the other."""
        (self.folder / "server.key").write_bytes(pair.key)
        (self.folder / "server.pem").write_bytes(pair.certificate)

    def put_client_ca(self, ca: CA) -> dict[str, Any]:
        """Set the client CA."""
        (self.folder / "clients.pem").write_bytes(ca.pem)
        return {**self.settings, "tls_client_ca": str(self.folder / "clients.pem")}


@pytest.fixture
def ca() -> CA:
    """Whom clients trust, and servers where they ask for client certificates."""
    return CA("ours")


@pytest.fixture
def files(tmp_path: Path, ca: CA) -> Files:
    """The files of a server with a certificate of `ca`."""
    folder = tmp_path / "tls"
    folder.mkdir()
    files = Files(folder)
    files.put(ca.issue_for_server())
    return files


def trusting(ca: CA, pair: Pair | None = None) -> grpc.ChannelCredentials:
    """A client's credentials."""
    return grpc.ssl_channel_credentials(
        ca.pem, *((pair.key, pair.certificate) if pair is not None else ())
    )


def _tls(client: Client, ca: CA, pair: Pair | None = None, token: str | None = None) -> Any:
    port = client.address.rpartition(":")[2]
    return calling(f"localhost:{port}", token, credentials=trusting(ca, pair))


async def _list(client: Client) -> object:
    return await client.agents.ListAgents(agents_pb.ListAgentsRequest(), timeout=10)


def _serial(address: str, ca: CA) -> int:
    """The serial number of the certificate that a server shows."""
    context = ssl.create_default_context(cadata=ca.pem.decode())
    context.set_alpn_protocols(["h2"])
    port = int(address.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as wrapped,
    ):
        shown = wrapped.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


async def test_tls_with_a_token(database_url: str, ca: CA, files: Files) -> None:
    token = await make_token(database_url, "ada", HUMAN, Role.VIEWER)
    async with serving(database_url, **files.settings, require_identity=True) as plain:
        async with _tls(plain, ca, token=token) as ada:
            await _list(ada)
        async with _tls(plain, ca) as nobody:
            await refused(
                _list(nobody), grpc.StatusCode.UNAUTHENTICATED, "PROOF_MISSING_OR_INVALID"
            )
        assert (await failed(_list(plain))).code() is UNAVAILABLE
        async with _tls(plain, CA("another")) as stranger:
            assert (await failed(_list(stranger))).code() is UNAVAILABLE


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1_1", "TLSv1_2", "TLSv1_3"])
async def test_tls_is_1_2_or_later(database_url: str, ca: CA, files: Files, version: str) -> None:
    context = ssl.create_default_context(cadata=ca.pem.decode())
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion[version]
    context.set_alpn_protocols(["h2"])
    async with serving(database_url, **files.settings) as client:
        port = int(client.address.rpartition(":")[2])
        opening = asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        if version == "TLSv1_1":
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await opening
            return
        _, writer = await opening
        assert writer.get_extra_info("ssl_object").version() == version.replace("_", ".")
        writer.close()


async def test_a_client_certificate_is_a_service(database_url: str, ca: CA, files: Files) -> None:
    spiffe = "spiffe://example.org/assessor"
    right = ca.issue("ignored", x509.UniformResourceIdentifier(spiffe))
    named = ca.issue("gateway-1")
    reviewer = await make_token(database_url, "ada", HUMAN, Role.VIEWER)
    async with serving(
        database_url,
        **files.put_client_ca(ca),
        mtls_roles=(f"{spiffe}=viewer,operator,recorder,registrar", "*=viewer"),
    ) as plain:
        async with _tls(plain, ca, right) as assessor:
            session_id = await running_session(assessor)
            assert (await record(assessor, session_id)).actor == actor_pb2.Actor(
                subject=spiffe, kind=actor_pb2.ACTOR_KIND_SERVICE
            )
        async with _tls(plain, ca, named) as gateway:
            await _list(gateway)
            await refused(
                running_session(gateway),
                grpc.StatusCode.PERMISSION_DENIED,
                "ROLE_MISSING",
                subject="gateway-1",
                role="ROLE_REGISTRAR",
            )
        # A bearer proof goes before the certificate; a bad one is not made good by it.
        async with _tls(plain, ca, named, reviewer) as ada:
            await _list(ada)
        async with _tls(plain, ca, right, f"{reviewer}x") as bad:
            await refused(_list(bad), grpc.StatusCode.UNAUTHENTICATED, "PROOF_MISSING_OR_INVALID")


async def test_certificates_that_are_not_taken(database_url: str, ca: CA, files: Files) -> None:
    foreign = CA("ours").issue("gateway-1")
    expired = ca.issue("gateway-1", valid=timedelta(days=-1))
    two = ca.issue(
        None,
        x509.UniformResourceIdentifier("spiffe://example.org/a"),
        x509.UniformResourceIdentifier("spiffe://example.org/b"),
    )
    reserved = ca.issue("local")
    nameless = ca.issue(None, x509.DNSName("somewhere"))
    async with serving(database_url, **files.put_client_ca(ca), mtls_roles=("*=viewer",)) as plain:
        for pair in (None, foreign, expired):
            async with _tls(plain, ca, pair) as client:
                assert (await failed(_list(client))).code() is UNAVAILABLE
        for pair in (two, reserved, nameless):
            async with _tls(plain, ca, pair) as client:
                await refused(
                    _list(client), grpc.StatusCode.UNAUTHENTICATED, "PROOF_MISSING_OR_INVALID"
                )


async def test_a_renewed_certificate_is_taken_while_streams_go_on(
    database_url: str, ca: CA, files: Files
) -> None:
    async with serving(database_url, **files.settings) as plain, _tls(plain, ca) as client:
        session_id = await running_session(client)
        request = session_service.ListExecutionsRequest(session_id=session_id, follow=True)
        stream: Any = client.sessions.ListExecutions(request)
        await record(client, session_id)
        assert len((await stream.read()).executions) == 1
        before = await asyncio.to_thread(_serial, plain.address, ca)

        renewed = ca.issue_for_server()
        # While only one of the two is there, the old ones stay in use.
        (files.folder / "server.pem").write_bytes(renewed.certificate)
        assert await asyncio.to_thread(_serial, plain.address, ca) == before
        (files.folder / "server.key").write_bytes(renewed.key)
        after = await asyncio.to_thread(_serial, plain.address, ca)
        assert after == x509.load_pem_x509_certificate(renewed.certificate).serial_number
        async with _tls(plain, ca) as newcomer:
            await _list(newcomer)

        (files.folder / "server.pem").unlink()
        assert await asyncio.to_thread(_serial, plain.address, ca) == after

        await record(client, session_id)
        assert (await stream.read()).executions[0].sequence == 2
        stream.cancel()


async def test_a_renewed_client_ca_is_taken(database_url: str, ca: CA, files: Files) -> None:
    new = CA("new")
    async with serving(database_url, **files.put_client_ca(ca), mtls_roles=("*=viewer",)) as plain:
        async with _tls(plain, ca, ca.issue("old-client")) as client:
            await _list(client)
        async with _tls(plain, ca, new.issue("new-client")) as client:
            await failed(_list(client))
        files.put_client_ca(new)
        async with _tls(plain, ca, new.issue("new-client")) as client:
            await _list(client)
        async with _tls(plain, ca, ca.issue("old-client")) as client:
            await failed(_list(client))


# What is not served.


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"listen": "0.0.0.0:0"}, "--tls-cert and --tls-key.*token create.*--plaintext"),
        ({"listen": "[::]:0"}, "--plaintext"),
        ({"listen": "example.org:0"}, "--plaintext"),
        ({"tls_cert": "a"}, "both --tls-cert and --tls-key"),
        ({"tls_key": "a"}, "both --tls-cert and --tls-key"),
        ({"tls_client_ca": "a"}, "--tls-cert"),
        ({"plaintext": True, "tls_cert": "a", "tls_key": "a"}, "exclude each other"),
        ({"mtls_roles": ("a=viewer",)}, "--tls-client-ca"),
        (
            {
                "tls_cert": "a",
                "tls_key": "a",
                "tls_client_ca": "a",
                "mtls_roles": ("*=viewer,reviewer",),
            },
            "cannot review",
        ),
        (
            {"tls_cert": "a", "tls_key": "a", "tls_client_ca": "a", "mtls_roles": ("x=admin",)},
            "NAME=ROLE",
        ),
    ],
)
async def test_settings_that_are_not_served(
    database_url: str, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ExposureError, match=says):
        async with running(settings_for(database_url, **settings)):
            pass


async def test_files_that_do_not_fit_are_not_served(
    database_url: str, ca: CA, files: Files
) -> None:
    (files.folder / "server.key").write_bytes(ca.issue_for_server().key)
    with pytest.raises(ListenError, match="cannot be used for TLS"):
        async with running(settings_for(database_url, **files.settings)):
            pass
    (files.folder / "server.key").unlink()
    with pytest.raises(ListenError, match=r"server\.key"):
        async with running(settings_for(database_url, **files.settings)):
            pass


@pytest.mark.parametrize("encrypted", [True, False])
async def test_an_address_that_others_reach_always_asks_for_a_proof(
    database_url: str, ca: CA, files: Files, encrypted: bool
) -> None:
    token = await make_token(database_url, "ada", HUMAN, Role.VIEWER)
    settings: dict[str, Any] = files.settings if encrypted else {"plaintext": True}
    async with running(settings_for(database_url, listen="0.0.0.0:0", **settings)) as port:
        credentials = trusting(ca) if encrypted else None
        async with calling(f"localhost:{port}", credentials=credentials) as nobody:
            await refused(
                _list(nobody), grpc.StatusCode.UNAUTHENTICATED, "PROOF_MISSING_OR_INVALID"
            )
        async with calling(f"localhost:{port}", token, credentials=credentials) as ada:
            await _list(ada)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/sessions.sock", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("[::ffff:0.0.0.0]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.org:1", False),
        ("127.0.0.1.example.org:1", False),
        (":1", False),
    ],
)
def test_what_is_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback
