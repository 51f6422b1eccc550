import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import (
    Client,
    clean_environment,
    get_session,
    list_executions,
    list_insights,
    start_session,
)
from infrascout.sessions.v1 import execution_pb2, insight_pb2, session_pb2
from infrascout.sessions.v1.agent_service_pb2 import ListAgentsRequest
from infrascout.sessions.v1.session_service_pb2 import ListSessionsRequest
from infrascout_sessions.demo import assessment
from infrascout_sessions.demo.assessment import PLAYBOOK, run_command
from infrascout_sessions.demo.finding import FILESYSTEMS, PORTS, finding
from infrascout_sessions.demo.narrative import printable
from infrascout_sessions.demo.run import DemoError, run


async def _the_session(client: Client) -> session_pb2.Session:
    listed = await client.sessions.ListSessions(ListSessionsRequest())
    [session] = listed.sessions
    return session


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _prints(command: str) -> str:
    return subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout


def test_the_demo_on_a_server_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "infrascout_sessions", "demo"],
        # The server of the demo is told by the demo alone how to run.
        env=clean_environment(INFRASCOUT_LISTEN="nowhere", TMPDIR=str(tmp_path / "tmp")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for part in (
        f"{len(PLAYBOOK)} commands, 1 failed; 1 insight",
        "PENDING_REVIEW, by the service local",
        "  1  uname -a\n",
        "No such file or directory",
        "shown by command",
        "Summary for the reviewer",
    ):
        assert part in done.stdout
    assert "\x1b" not in done.stdout  # it is no terminal
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_the_record_is_what_happened(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    await run(client.address)
    session = await _the_session(client)
    [agent] = (await client.agents.ListAgents(ListAgentsRequest())).agents
    executions = await list_executions(client, session.session_id)
    [insight] = await list_insights(client, session.session_id)

    assert session.status == session_pb2.SESSION_STATUS_PENDING_REVIEW
    assert session.hostname == agent.hostname == _prints("uname -n").strip()
    assert [execution.step for execution in executions] == list(PLAYBOOK)
    by_command = {execution.command: execution for execution in executions}
    for command in ("uname -a", "id"):
        assert by_command[command].output.text == _prints(command)
        assert by_command[command].exit_code == 0
        assert by_command[command].HasField("error_output")
    missing = by_command["cat /etc/infrascout/agent.conf"]
    assert missing.exit_code == 1
    assert (missing.output.text, missing.error_output.size_bytes > 0) == ("", True)
    assert all(
        execution.start_time.ToDatetime() <= execution.end_time.ToDatetime()
        for execution in executions
    )
    for sequence in insight.execution_sequences:
        assert insight.evidence.splitlines()[0] in executions[sequence - 1].output.text
    printed = capsys.readouterr().out
    for part in (session.session_id, session.summary, insight.value, client.address):
        assert part in printed


async def test_the_demo_can_be_repeated(client: Client) -> None:
    await run(client.address)
    await run(client.address)
    assert len((await client.agents.ListAgents(ListAgentsRequest())).agents) == 1
    assert len((await client.sessions.ListSessions(ListSessionsRequest())).sessions) == 2


async def test_a_session_that_runs_already_is_left_alone(client: Client) -> None:
    await run(client.address)
    other = await start_session(client, (await _the_session(client)).agent_id)
    with pytest.raises(DemoError, match=f"already runs session {other.session_id}: submit"):
        await run(client.address)
    assert await get_session(client, other.session_id) == other


async def test_without_a_server_at_the_address() -> None:
    with pytest.raises(DemoError, match=r"no server answers at 127\.0\.0\.1:1 .*make run"):
        await run("127.0.0.1:1")


async def test_an_address_that_is_none() -> None:
    with pytest.raises(DemoError, match="'nonsense' is no address: HOST:PORT or unix:PATH is"):
        await run("nonsense")


async def test_a_server_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho the reason\nexit 1\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(DemoError, match=r"the server did not start; it said:\nthe reason"):
        await run("")


async def test_a_demo_that_is_stopped_interrupts_its_session(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assessment, "PLAYBOOK", {"1": ("uname -a",), "2": ("sleep 60",)})
    demo = asyncio.create_task(run(client.address))
    while (
        not (listed := await client.sessions.ListSessions(ListSessionsRequest())).sessions
        or not listed.sessions[0].execution_count
    ):
        assert not demo.done()
        await asyncio.sleep(0.01)
    demo.cancel()
    with pytest.raises(asyncio.CancelledError):
        await demo
    session = await _the_session(client)
    assert session.status == session_pb2.SESSION_STATUS_INTERRUPTED
    assert session.status_reason == "the demo was stopped"


@pytest.mark.parametrize(
    ("number", "exit_code", "send"),
    [
        (signal.SIGTERM, 143, os.kill),
        (signal.SIGINT, 130, os.kill),
        # Ctrl+C in a terminal: its server is told, too.
        (signal.SIGINT, 130, os.killpg),
    ],
)
def test_a_demo_that_is_stopped_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals, exit_code: int, send: Callable[[int, int], None]
) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    pid = tmp_path / "pid"
    code = (
        # As in a terminal, though what runs the tests in the background may have it ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from infrascout_sessions import cli; from infrascout_sessions.demo import assessment;"
        f"assessment.PLAYBOOK = {{'1': ('echo $$ > {pid}; exec sleep 60',)}}; cli.app(['demo'])"
    )
    demo = subprocess.Popen(
        [sys.executable, "-c", code],
        env=clean_environment(TMPDIR=str(folder)),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not pid.exists() or not pid.read_text():
        assert demo.poll() is None
        time.sleep(0.01)
    assert list(folder.iterdir())
    send(demo.pid, number)
    # Long before its command would end.
    assert demo.wait(20) == exit_code
    assert list(folder.iterdir()) == []
    while _exists(int(pid.read_text())):  # until it is reaped, whoever does that
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("command", "exit_code", "output", "error_output"),
    [
        ("printf out; printf err >&2", 0, b"out", b"err"),
        ("exit 3", 3, b"", b""),
        ("kill -9 $$", None, b"", b""),
        ("printf begun; sleep 60", None, b"begun", b""),
        (r"printf '\377\000'", 0, b"\xff\0", b""),
        ("cat", 0, b"", b""),  # nothing comes from the terminal
    ],
)
async def test_whatever_becomes_of_a_command_is_recorded(
    command: str, exit_code: int | None, output: bytes, error_output: bytes
) -> None:
    ran = await run_command(command, limit_seconds=1)
    assert ran.command == command
    assert (ran.exit_code if ran.HasField("exit_code") else None) == exit_code
    assert (_content(ran.output), _content(ran.error_output)) == (output, error_output)


async def test_a_program_that_does_not_exist_is_recorded() -> None:
    ran = await run_command("infrascout-no-such-program --version")
    assert ran.exit_code == 127
    assert "not found" in ran.error_output.text


def _content(output: execution_pb2.Output) -> bytes:
    return output.binary or output.text.encode()


SS = """\
State  Recv-Q Send-Q Local Address:Port Peer Address:PortProcess
LISTEN 0      128          0.0.0.0:22        0.0.0.0:*
LISTEN 0      4096   127.0.0.53%lo:53        0.0.0.0:*
LISTEN 0      128             [::]:22           [::]:*
LISTEN 0      4096               *:443             *:*
LISTEN 0      4096 [::ffff:127.0.0.1]:50051        *:*
"""
NETSTAT = """\
Proto Recv-Q Send-Q Local Address           Foreign Address         State
tcp        0      0 0.0.0.0:22              0.0.0.0:*               LISTEN
tcp        0      0 10.0.0.5:49152          10.0.0.6:443            ESTABLISHED
tcp6       0      0 ::1:631                 :::*                    LISTEN
unix  2      [ ACC ]     STREAM     LISTENING     13124    /run/systemd/private
"""
NETSTAT_MACOS = """\
Proto Recv-Q Send-Q  Local Address          Foreign Address        (state)
tcp4       0      0  *.5000                 *.*                    LISTEN
tcp4       0      0  127.0.0.1.8021         *.*                    LISTEN
"""
DF = """\
Filesystem      Size  Used Avail Use% Mounted on
/dev/vda        252G   13G   79G  14% /
tmpfs            24G    9G   15G  38% /dev/shm
"""
LOW, INFO = insight_pb2.SEVERITY_LOW, insight_pb2.SEVERITY_INFO


@pytest.mark.parametrize(
    ("ports", "filesystems", "value", "severity", "evidence_lines", "sequences"),
    [
        (SS, DF, "TCP ports that listen beyond loopback: 22, 443.", LOW, 5, [2]),
        (NETSTAT, DF, "TCP ports that listen beyond loopback: 22.", LOW, 2, [2]),
        (NETSTAT_MACOS, DF, "TCP ports that listen beyond loopback: 5000.", LOW, 2, [2]),
        ("", DF, "No TCP port listens beyond loopback; 0 on loopback alone.", INFO, 0, [2]),
        (None, DF, "The fullest filesystem, /dev/shm, is 38 % full.", INFO, 1, [1]),
        (
            None,
            None,
            "Neither the listening ports nor the filesystems of this host could be read.",
            INFO,
            2,
            [2, 1],
        ),
    ],
)
def test_the_finding_is_what_the_outputs_show(
    ports: str | None,
    filesystems: str | None,
    value: str,
    severity: insight_pb2.Severity,
    evidence_lines: int,
    sequences: list[int],
) -> None:
    found = finding({PORTS: _ran(2, ports), FILESYSTEMS: _ran(1, filesystems)})
    assert (found.value, found.severity or INFO) == (value, severity)
    assert len(found.evidence.splitlines()) == evidence_lines
    assert found.execution_sequences == sequences


def _ran(sequence: int, output: str | None) -> execution_pb2.Execution:
    if output is None:
        error_output = execution_pb2.Output(text="not found\n")
        return execution_pb2.Execution(sequence=sequence, exit_code=127, error_output=error_output)
    output_message = execution_pb2.Output(text=output)
    return execution_pb2.Execution(sequence=sequence, exit_code=0, output=output_message)


def test_an_output_does_not_command_the_terminal() -> None:
    assert printable("caf\u00e9\t1\n\x1b[2J\r\u202e") == "caf\u00e9    1\n\\x1b[2J\\r\\u202e"
