"""The narrative: what the service has on record about a session, for a human reader."""

from collections.abc import Iterator
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from infrascout.sessions.v1.actor_pb2 import Actor, ActorKind
from infrascout.sessions.v1.execution_pb2 import EXECUTION_STATE_KILLED, Execution, Output
from infrascout.sessions.v1.insight_pb2 import Insight, Severity
from infrascout.sessions.v1.session_pb2 import Session, SessionStatus
from infrascout.sessions.v1.session_service_pb2 import ListExecutionsRequest, ListInsightsRequest
from infrascout_sessions.client import SessionsClient
from infrascout_sessions.demo.finding import succeeded

_SHOWN_LINES: Final = 8


async def print_record(console: Console, client: SessionsClient, session_id: str) -> None:
    """Ask the service for a session and print it: who, what was run, what was found."""
    session = await client.get_session(session_id)
    _print_session(console, session)
    console.print("\nWhat was run", style="bold")
    async for execution in client.list_executions(ListExecutionsRequest(session_id=session_id)):
        _print_execution(console, execution)
    console.print("\nWhat was found", style="bold")
    async for insight in client.list_insights(ListInsightsRequest(session_id=session_id)):
        _print_insight(console, insight)
    console.print("\nSummary for the reviewer", style="bold")
    console.print(f"  {printable(session.summary)}")


def _print_session(console: Console, session: Session) -> None:
    console.print(f"\nSession {session.session_id}", style="bold")
    console.print(f"  Playbook {session.playbook} on {session.hostname}, agent {session.agent_id}")
    console.print(
        f"  {_count(session.execution_count, 'command')}, {session.failed_execution_count} failed; "
        f"{_count(session.insight_count, 'insight')}"
    )
    for step in session.transitions:
        status = SessionStatus.Name(step.status).removeprefix("SESSION_STATUS_")
        console.print(f"  {_time(step.time)}  {status}, by {_actor(step.actor)}")


def _print_execution(console: Console, execution: Execution) -> None:
    started, ended = execution.start_time.ToDatetime(), execution.end_time.ToDatetime()
    killed = execution.state == EXECUTION_STATE_KILLED
    console.print(f"\n{execution.sequence:3}  {printable(execution.command)}", style="bold")
    console.print(
        f"     {execution.step}: {_time(execution.start_time)}, "
        f"{(ended - started).total_seconds() * 1000:.0f} ms, ",
        style="dim",
        end="",
    )
    console.print(
        "killed" if killed else f"exit code {execution.exit_code}",
        style="green" if succeeded(execution) else "red",
    )
    _print_output(console, "stdout", execution.output)
    _print_output(console, "stderr", execution.error_output)


def _print_output(console: Console, name: str, output: Output) -> None:
    if output.size_bytes:
        for line in _shown(output.text or output.binary.decode(errors="replace")):
            console.print(f"     | {line}")
        size = f"{output.size_bytes:,} bytes, SHA-256 {output.sha256[:16]}…"
        console.print(f"     {name}: {size}", style="dim")


def _print_insight(console: Console, insight: Insight) -> None:
    severity = Severity.Name(insight.severity).removeprefix("SEVERITY_")
    shown_by = ", ".join(map(str, insight.execution_sequences))
    console.print(f"\n  {severity}  {printable(insight.value)}", style="bold")
    console.print(
        f"     {insight.category}/{insight.key}, revision {insight.revision}, "
        f"shown by command {shown_by}",
        style="dim",
    )
    for line in _shown(insight.evidence):
        console.print(f"     | {line}")
    for step in insight.remediation_steps:
        console.print(f"     To do: {printable(step)}")


def _shown(text: str) -> Iterator[str]:
    lines = printable(text).splitlines()
    yield from lines[:_SHOWN_LINES]
    if len(lines) > _SHOWN_LINES:
        yield f"… and {_count(len(lines) - _SHOWN_LINES, 'more line')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _time(time: Timestamp) -> str:
    return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"


def _actor(actor: Actor) -> str:
    return f"the {ActorKind.Name(actor.kind).removeprefix('ACTOR_KIND_').lower()} {actor.subject}"


def printable(text: str) -> str:
    """The text with control characters spelled out: an output must not command the terminal."""
    return "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1]
        for char in text.expandtabs()
    )
