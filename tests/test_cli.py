"""The command line: help, wrong arguments, environment variables, metrics."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints
from urllib.request import urlopen

import grpc
import pytest

from harness import (
    CONSOLE_SCRIPT,
    NO_SESSION,
    clean_environment,
    connected,
    get_session,
    record,
    refused,
    running_session,
    service_process,
    settings_for,
)
from infrascout.sessions.v1 import agent_service_pb2
from infrascout_sessions import __version__
from infrascout_sessions.config import Settings
from infrascout_sessions.exposure import ExposureError
from infrascout_sessions.models import system_clock
from infrascout_sessions.server import ListenError, running
from infrascout_sessions.storage.database import (
    DatabaseSetupError,
    migrate_database,
    open_for_command,
)


def run(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CONSOLE_SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env=clean_environment(**environment),
        cwd=cwd,
        timeout=60,
        check=False,
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["serve", "migrate", "demo", "--version"]),
        (
            ["serve"],
            [
                *("--listen", "INFRASCOUT_LISTEN", "127.0.0.1:50051"),
                *("--database-url", "INFRASCOUT_DATABASE_URL", "data/sessions.db"),
                *("--idle-timeout", "INFRASCOUT_IDLE_TIMEOUT", "7200"),
                *("--shutdown-grace", "INFRASCOUT_SHUTDOWN_GRACE"),
                *("--maximum-waiting-writes", "INFRASCOUT_MAXIMUM_WAITING_WRITES"),
                *("--metrics-listen", "INFRASCOUT_METRICS_LISTEN"),
                *("--log-level", "INFRASCOUT_LOG_LEVEL"),
            ],
        ),
        (["migrate"], ["--database-url", "INFRASCOUT_DATABASE_URL"]),
        (["demo"], ["--address"]),
    ],
    ids=["program", "serve", "migrate", "demo"],
)
def test_help(arguments: list[str], names: list[str]) -> None:
    shown = run(*arguments, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    for name in names:
        assert name in shown.stdout


def test_every_option_of_serve_has_an_environment_variable_and_is_in_the_readme() -> None:
    shown = run("serve", "--help").stdout
    options = set(re.findall(r"^  (--[a-z-]+) <", shown, re.MULTILINE))
    assert len(options) >= 7
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    for option in options:
        variable = f"INFRASCOUT_{option.removeprefix('--').replace('-', '_').upper()}"
        assert variable in shown
        assert f"| `{option}` | `{variable}` |" in readme


@pytest.mark.parametrize(
    "command", [(str(CONSOLE_SCRIPT),), (sys.executable, "-m", "infrascout_sessions")]
)
def test_version(command: tuple[str, ...]) -> None:
    shown = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, check=True, timeout=20
    )
    assert shown.stdout == f"{__version__}\n"


SERVE = ("serve", "--listen", "127.0.0.1:0")

URLS = {
    "": "the database URL is not one",
    "nonsense": "the database URL is not one",
    "postgresql+asyncpg://u:secret@127.0.0.1:x/db": "the database URL is not one",
    "postgresql+asyncpg://u:secret@127.0.0.1:1/db": "postgresql+asyncpg://u:***@127.0.0.1:1/db ",
    "postgresql+asyncpg://127.0.0.1:1/d?password=secret": "postgresql+asyncpg://127.0.0.1:1/d can",
    "postgresql+asyncpg://127.0.0.1:1/d?sslmode=no": "postgresql+asyncpg://127.0.0.1:1/d?sslmode=no",
    "sqlite+aiosqlite://": "SQLite needs a plain file",
    "sqlite+aiosqlite:///:memory:": "SQLite needs a plain file",
    "sqlite+aiosqlite:///a.db?mode=memory": "SQLite needs a plain file",
    "sqlite:///a.db": "databases of the kind sqlite are not supported",
    "mysql+aiomysql://root:secret@host/a": "databases of the kind mysql+aiomysql are not",
    "sqlite+aiosqlite:///file/a.db": "the folder file cannot be made",
    "sqlite+aiosqlite:////proc/a/b.db": "the folder /proc/a cannot be made",
    "sqlite+aiosqlite:///file": "file cannot be used: file is not a database",
    "sqlite+aiosqlite:///folder": "folder cannot be used: unable to open database file",
}
ADDRESSES = {
    "": "cannot listen on ''",
    "nonsense": "cannot listen on 'nonsense'",
    ":50051": "cannot listen on ':50051'",
    "127.0.0.1:": "cannot listen on '127.0.0.1:'",
    "unix:": "cannot listen on 'unix:'",
    "127.0.0.1:port": "cannot listen on '127.0.0.1:port'",
    # gRPC would listen on port 34463.
    "127.0.0.1:99999": "cannot listen on '127.0.0.1:99999'",
    "256.0.0.1:50051": "cannot listen on 256.0.0.1:50051",
    # TEST-NET-1, which no machine has.
    "192.0.2.1:50051": "cannot listen on 192.0.2.1:50051",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a file that is no database and a folder in it."""
    (tmp_path / "file").write_text("This is not what an SQLite database begins with.\n" * 10)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.suffix != ".lock"}


@pytest.mark.parametrize("url", URLS)
async def test_a_database_that_cannot_be_used(folder: Path, url: str) -> None:
    before = files_in(folder)
    with pytest.raises(DatabaseSetupError) as migrating:
        await migrate_database(url)
    with pytest.raises(DatabaseSetupError) as serving:
        async with running(settings_for(url)):
            pass
    assert str(migrating.value) == str(serving.value)
    assert str(serving.value).startswith(URLS[url])
    assert "secret" not in str(serving.value)
    # Nothing was made in vain.
    assert files_in(folder) == before


async def test_a_database_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infrascout_sessions.storage.postgres._FIRST_ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+asyncpg://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
        for opening in (open_for_command(url, system_clock), running(settings_for(url))):
            with pytest.raises(DatabaseSetupError, match="cannot be used: it did not answer in ti"):
                async with asyncio.timeout(10), opening:
                    pass


@pytest.mark.parametrize("address", ADDRESSES)
async def test_an_address_that_cannot_be_listened_on(database_url: str, address: str) -> None:
    with pytest.raises((ListenError, ExposureError)) as error:
        async with running(settings_for(database_url, listen=address, plaintext=True)):
            pass
    assert str(error.value).startswith(ADDRESSES[address])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["serve", "--nonsense"], "No such option: --nonsense"),
        (["serve", "surplus"], "Got unexpected extra argument(s) (surplus)"),
        (["serve", "--idle-timeout", "-1"], "Invalid value for '--idle-timeout'"),
        (["serve", "--idle-timeout", "soon"], "Invalid value for '--idle-timeout'"),
        (["serve", "--idle-timeout", "nan"], "Invalid value for '--idle-timeout'"),
        (["serve", "--idle-timeout", "inf"], "Invalid value for '--idle-timeout'"),
        (["serve", "--shutdown-grace", "-1"], "Invalid value for '--shutdown-grace'"),
        (["serve", "--maximum-waiting-writes", "0"], "Invalid value for '--maximum-waiting-wri"),
        (["serve", "--log-level", "loud"], "Invalid value for '--log-level'"),
        *(
            (["serve", option, value], f"Invalid value for '{option}'")
            for option, value in [
                ("--database-timeout", "inf"),
                ("--shutdown-grace", "inf"),
                ("--maximum-failed-proofs", "inf"),
                ("--maximum-connection-age", "inf"),
                ("--keepalive", "inf"),
                ("--keepalive", "nan"),
                # In milliseconds and in bytes, more than gRPC and PostgreSQL can count.
                ("--maximum-connection-age", "2592000"),
                ("--keepalive", "10000000"),
                ("--database-timeout", "10000000"),
                ("--maximum-metadata-bytes", "9999999999"),
                ("--database-connections", "9999999999"),
            ]
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_exit_code_2(folder: Path, arguments: list[str], said: str) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    usage, *_, error = ended.stderr.splitlines()
    assert usage.startswith("Usage: infrascout-sessions ")
    assert error.startswith(f"Error: {said}")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--listen", "127.0.0.1:99999"], ADDRESSES["127.0.0.1:99999"]),
        (["serve", "--plaintext", "--listen", "192.0.2.1:50051"], ADDRESSES["192.0.2.1:50051"]),
        ([*SERVE, "--metrics-listen", "nonsense"], "cannot serve metrics on 'nonsense'"),
        ([*SERVE, "--metrics-listen", "127.0.0.1:99999"], "cannot serve metrics on '127.0."),
        ([*SERVE, "--metrics-listen", "192.0.2.1:1"], "cannot serve metrics on '192.0.2."),
        *(
            ([*command, "--database-url", url], URLS[url])
            for command, url in [
                (SERVE, "sqlite+aiosqlite:///:memory:"),
                (SERVE, "sqlite+aiosqlite:///file"),
                (SERVE, "sqlite+aiosqlite:///folder"),
                (["migrate"], "mysql+aiomysql://root:secret@host/a"),
                (["migrate"], "sqlite+aiosqlite:///folder"),
            ]
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_exit_code_1(folder: Path, arguments: list[str], said: str) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    # gRPC says its own in its own way.
    lines = [line for line in ended.stderr.splitlines() if not re.match(r"[EWI]\d{4} ", line)]
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith(f"infrascout-sessions: {said}")
    assert "secret" not in ended.stderr


async def test_the_greatest_values_are_served_with(database_url: str, tmp_path: Path) -> None:
    options = [get_args(hint)[1] for hint in get_type_hints(Settings, include_extras=True).values()]
    # Typer keeps the name there.
    greatest = {option.default: str(option.max) for option in options if option.max is not None}
    del greatest["--workers"]
    assert len(greatest) >= 9
    arguments = [word for pair in greatest.items() for word in pair]
    async with (
        service_process(database_url, tmp_path / "log", *arguments) as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        assert (await record(client, session_id)).sequence == 1


@pytest.mark.parametrize("stdout", [">&-", ">/dev/full"])
async def test_it_serves_though_nobody_can_read_that_it_does(
    sqlite_url: str, tmp_path: Path, stdout: str
) -> None:
    address = f"unix:{tmp_path}/socket"
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'exec "$0" "$@" {stdout}', str(CONSOLE_SCRIPT)),
        *("serve", "--listen", address, "--database-url", sqlite_url),
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    try:
        async with connected(address) as client:
            request = agent_service_pb2.ListAgentsRequest()
            await client.agents.ListAgents(request, wait_for_ready=True, timeout=20)
            # It has said it by now, or has failed to.
            await asyncio.sleep(0.5)
            await client.agents.ListAgents(request, timeout=5)
    finally:
        if process.returncode is None:
            process.terminate()
        _, said = await process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in said.decode()


def test_a_port_for_metrics_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        ended = run(*SERVE, "--metrics-listen", address, cwd=tmp_path)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"infrascout-sessions: cannot serve metrics on '{address}': another ")


def test_a_wrong_environment_variable_is_as_wrong_as_an_option(tmp_path: Path) -> None:
    ended = run("serve", cwd=tmp_path, INFRASCOUT_IDLE_TIMEOUT="-1")
    assert ended.returncode == 2
    assert "INFRASCOUT_IDLE_TIMEOUT" in ended.stderr
    ended = run("migrate", cwd=tmp_path, INFRASCOUT_DATABASE_URL="nonsense")
    assert ended.returncode == 1


def test_migrate_makes_the_folder_and_says_so(tmp_path: Path) -> None:
    url = "sqlite+aiosqlite:///deep/down/sessions.db"
    done = run("migrate", cwd=tmp_path, INFRASCOUT_DATABASE_URL=url)
    assert (done.returncode, done.stdout) == (0, "The database is up to date.\n")
    assert (tmp_path / "deep/down/sessions.db").exists()
    # Evidence is nobody else's to read.
    assert (tmp_path / "deep/down").stat().st_mode & 0o077 == 0


async def test_the_database_is_nobody_elses_to_read(tmp_path: Path) -> None:
    # Not even in a folder that was there before.
    url = f"sqlite+aiosqlite:///{tmp_path / 'sessions.db'}"
    async with (
        service_process(url, tmp_path / "log") as service,
        connected(service.address) as client,
    ):
        await running_session(client)
        names = ("sessions.db", "sessions.db-wal", "sessions.db-shm")
        modes = [os.stat(tmp_path / name).st_mode & 0o777 for name in names]
    assert modes == [0o600] * 3


async def test_environment_variables_set_what_options_do_not(
    database_url: str, tmp_path: Path
) -> None:
    port = free_port()
    metrics = free_port()
    process = await asyncio.create_subprocess_exec(
        *(str(CONSOLE_SCRIPT), "serve", "--idle-timeout", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(
            INFRASCOUT_LISTEN=f"127.0.0.1:{port}",
            INFRASCOUT_DATABASE_URL=database_url,
            INFRASCOUT_IDLE_TIMEOUT="0.1",  # the option wins
            INFRASCOUT_METRICS_LISTEN=f"127.0.0.1:{metrics}",
            INFRASCOUT_LOG_LEVEL="error",
        ),
        cwd=tmp_path,
    )
    try:
        assert process.stdout is not None
        first = (await process.stdout.readline()).decode()
        assert first.startswith(
            f"InfraScout Sessions {__version__} serves on 127.0.0.1:{port} (plaintext)"
        )
        async with connected(f"127.0.0.1:{port}") as client:
            session_id = await running_session(client)
            await asyncio.sleep(0.5)
            assert (await record(client, session_id)).sequence == 1
        with await asyncio.to_thread(urlopen, f"http://127.0.0.1:{metrics}/metrics") as page:
            assert page.status == 200
    finally:
        process.terminate()
        _, errors = await process.communicate()
    assert process.returncode == 0
    assert errors == b""
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "open_here"),
    [
        (SERVE, True),
        ((*SERVE, "--require-identity"), False),
        (("serve", "--listen", "unix:socket"), True),
    ],
    ids=["local", "proofs", "unix"],
)
def test_what_it_says_to_try_works(
    tmp_path: Path, arguments: tuple[str, ...], open_here: bool
) -> None:
    with subprocess.Popen(
        [str(CONSOLE_SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=clean_environment(),
        cwd=tmp_path,
    ) as server:
        assert server.stdout is not None
        said = "".join(iter(server.stdout.readline, "\n"))
        try:
            tried = re.findall(r"(?m)^  ((?:.+\\\n)*.+)$", said)
            assert [command.split()[0] for command in tried] == (
                [str(CONSOLE_SCRIPT), "grpcurl", "grpcurl"] if open_here else ["grpcurl"]
            )
            for command in tried:
                if shutil.which(command.split()[0]):
                    done = subprocess.run(
                        ["sh", "-c", command],
                        capture_output=True,
                        text=True,
                        cwd=tmp_path,
                        timeout=60,
                    )
                    assert (done.returncode, done.stderr) == (0, ""), command
        finally:
            server.terminate()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
async def test_metrics_on_an_ipv6_address(sqlite_url: str, tmp_path: Path) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as one:
        address = f"[::1]:{one.getsockname()[1]}"
    async with service_process(sqlite_url, tmp_path / "log", "--metrics-listen", address):
        with await asyncio.to_thread(urlopen, f"http://{address}/metrics") as page:
            assert page.status == 200


async def test_metrics_count_what_was_answered(database_url: str, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with (
        service_process(database_url, tmp_path / "log", "--metrics-listen", address) as service,
        connected(service.address) as client,
    ):
        session_id = await running_session(client)
        await asyncio.gather(*(record(client, session_id) for _ in range(7)))
        for _ in range(2):
            await refused(
                *(get_session(client, NO_SESSION), grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"),
                session_id=NO_SESSION,
            )
        with await asyncio.to_thread(urlopen, f"http://{address}/metrics") as page:
            samples = dict(
                line.rsplit(" ", 1)
                for line in page.read().decode().splitlines()
                if not line.startswith("#")
            )

    def counted(rpc: str, code: str) -> float:
        method = f'method="/infrascout.sessions.v1.{rpc}"'
        return float(samples[f'infrascout_sessions_rpcs_total{{code="{code}",{method}}}'])

    assert counted("RecordingService/RecordExecution", "OK") == 7
    assert counted("SessionService/StartSession", "OK") == 1
    assert counted("SessionService/GetSession", "NOT_FOUND") == 2
    seconds = 'infrascout_sessions_rpc_seconds_count{method="/infrascout.sessions.v1.'
    assert float(samples[seconds + 'RecordingService/RecordExecution"}']) == 7
    assert float(samples["process_resident_memory_bytes"]) > 0
