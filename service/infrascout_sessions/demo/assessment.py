"""The assessment: a playbook of read-only commands, run here and recorded there."""

import asyncio
import os
import platform
import shutil
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from tempfile import TemporaryFile
from typing import Final

from infrascout.sessions.v1.agent_service_pb2 import RegisterAgentRequest
from infrascout.sessions.v1.execution_pb2 import Output
from infrascout.sessions.v1.recording_service_pb2 import RecordExecutionRequest
from infrascout.sessions.v1.session_service_pb2 import (
    InterruptSessionRequest,
    StartSessionRequest,
    SubmitSessionRequest,
)
from infrascout_sessions.client import CallError, SessionsClient
from infrascout_sessions.demo.finding import FILESYSTEMS, PORTS, finding, summary

# Of each step the first command whose program exists is run. If none does, it is the last one,
# and that it was not found is what goes on record.
PLAYBOOK: Final[Mapping[str, tuple[str, ...]]] = {
    "1.1 kernel": ("uname -a",),
    "1.2 operating system": ("sw_vers", "cat /etc/os-release"),
    "1.3 load": ("uptime",),
    "2.1 user": ("id",),
    "2.2 processes": ("ps -eo user,pid,comm",),
    FILESYSTEMS: ("df -h",),
    PORTS: ("ss -tln", "netstat -an"),
    # Hardly any host has this file: what fails is part of the record, too.
    "4.1 settings of the agent": ("cat /etc/infrascout/agent.conf",),
}

_COMMAND_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 1.0


async def assess(client: SessionsClient) -> str:
    """Register this host, run the playbook in a session, and submit it; give the session's id."""
    session_id = await _start(client)
    try:
        await _record(client, session_id)
    except BaseException:
        # Left running, it would keep its agent from the next session. Whoever stops the demo does
        # not wait for long, and may have stopped the server with it.
        with suppress(CallError):
            await replace(client, deadline_seconds=_STOP_SECONDS).interrupt_session(
                InterruptSessionRequest(session_id=session_id, reason="the demo was stopped")
            )
        raise
    return session_id


async def _start(client: SessionsClient) -> str:
    hostname = socket.gethostname()
    agent = RegisterAgentRequest(
        agent_id=f"ag_{sha256(hostname.encode()).hexdigest()[:8]}",
        hostname=hostname,
        os=_operating_system(),
        capabilities=["shell"],
    )
    await client.register_agent(agent)
    session = StartSessionRequest(
        agent_id=agent.agent_id,
        playbook="host-baseline-demo",
        description="What the demo sees of the host that it runs on.",
    )
    return (await client.start_session(session)).session_id


async def _record(client: SessionsClient, session_id: str) -> None:
    executions = {}
    for step, commands in PLAYBOOK.items():
        ran = await run_command(_first_that_exists(commands))
        ran.session_id, ran.step = session_id, step
        executions[step] = await client.record_execution(ran)
    insight = finding(executions)
    insight.session_id = session_id
    await client.save_insight(insight)
    await client.submit_session(
        SubmitSessionRequest(session_id=session_id, summary=summary(executions.values(), insight))
    )


def _operating_system() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return f"{platform.system()} {platform.release()}"


def _first_that_exists(commands: tuple[str, ...]) -> str:
    return next((each for each in commands if shutil.which(each.split()[0])), commands[-1])


async def run_command(
    command: str, limit_seconds: float = _COMMAND_SECONDS
) -> RecordExecutionRequest:
    """Run a command in a shell, for so long at most; whatever becomes of it is the record."""
    # Files, unlike pipes, keep what a command had written when it is killed.
    with TemporaryFile() as output, TemporaryFile() as error_output:
        start_time = datetime.now(UTC)
        process = await asyncio.create_subprocess_shell(
            command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=error_output,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_seconds):
                    await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            exit_code = await process.wait()
        end_time = datetime.now(UTC)
        output.seek(0)
        error_output.seek(0)
        return RecordExecutionRequest(
            command=command,
            capability="shell",
            output=_output(output.read()),
            error_output=_output(error_output.read()),
            # Python's negative ones are signals: the command ended without an exit code.
            exit_code=exit_code if exit_code >= 0 else None,
            start_time=start_time,
            end_time=end_time,
        )


def _output(data: bytes) -> Output:
    try:
        return Output(text=data.decode())
    except UnicodeDecodeError:
        return Output(binary=data)
