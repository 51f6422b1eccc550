"""TLS on the way to PostgreSQL, as libpq's parameters in the URL ask for it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from certificates import CA
from commands import run as run_command
from harness import get_session, record, running_session
from replicas import replicas

_SSL_REQUEST = bytes.fromhex("0000000804d2162f")


class _Terminator:
    """Answers as a PostgreSQL with TLS does, and passes on to one without."""

    def __init__(self, to: sa.URL, certificate: Path) -> None:
        self._to = to
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate)
        self.without_tls = 0

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connection of a client."""
        with suppress(OSError):
            if await reader.readexactly(8) != _SSL_REQUEST:
                self.without_tls += 1
                writer.close()
                return
            writer.write(b"S")
            await writer.start_tls(self._context)
            to_reader, to_writer = await self._connection()
            await asyncio.gather(_pump(reader, to_writer), _pump(to_reader, writer))

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port, folder = self._to.port or 5432, self._to.query.get("host")
        if folder is None:
            return await asyncio.open_connection(self._to.host, port)
        return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65_536):
            target.write(data)
    target.close()


@pytest.fixture
async def terminator(postgres_url: str, tmp_path: Path) -> AsyncIterator[tuple[_Terminator, str]]:
    """Such an end, with a certificate for `localhost` of ca.pem, and its URL."""
    ca = CA("ours")
    pair = ca.issue_for_server()
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    (tmp_path / "other.pem").write_bytes(CA("another").pem)
    (tmp_path / "server.pem").write_bytes(pair.certificate + pair.key)
    url = sa.make_url(postgres_url)
    end = _Terminator(url, tmp_path / "server.pem")
    server = await asyncio.start_server(end.connect, "localhost", 0)
    port = server.sockets[0].getsockname()[1]
    through = url.set(host="localhost", port=port, query={})
    yield end, through.render_as_string(hide_password=False)
    server.close()


@pytest.mark.parametrize(
    "parameters", ["?sslmode=require", "?ssl=require", "?sslmode=verify-full&sslrootcert={}/ca.pem"]
)
async def test_all_goes_through_tls(
    terminator: tuple[_Terminator, str], tmp_path: Path, parameters: str
) -> None:
    end, url = terminator
    async with replicas(url + parameters.format(tmp_path), tmp_path, count=2) as [one, other]:
        session_id = await running_session(one.client)
        await record(one.client, session_id)
        assert (await get_session(other.client, session_id)).execution_count == 1
    assert end.without_tls == 0


async def test_who_cannot_be_verified_is_refused(
    terminator: tuple[_Terminator, str], tmp_path: Path
) -> None:
    _, url = terminator
    url += f"?sslmode=verify-full&sslrootcert={tmp_path}/other.pem"
    code, said = await run_command("serve", "--listen", "127.0.0.1:0", "--database-url", url)
    assert (code, said.count("\n")) == (1, 1)
    assert "certificate verify failed" in said
