"""Executions, as results and as text, in pages that fit a model's context."""

import codecs
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from infrascout.sessions.v1.execution_pb2 import Execution, ExecutionState, Output
from infrascout.sessions.v1.session_pb2 import Session
from infrascout_sessions.mcp.results import Captured, ExecutionPage, ExecutionRow
from infrascout_sessions.mcp.sessions import status_name
from infrascout_sessions.mcp.texts import clip_quoted, instant, printable, quoted, shortened, size
from infrascout_sessions.mcp.tools import RESULT_CHARACTERS, Answer

DEFAULT_LIMIT: Final = 100
MAXIMUM_LIMIT: Final = 500


@dataclass(frozen=True)
class Caps:
    """How many characters of an execution are shown, once as data and once as text."""

    command: int
    output: int
    error_output: int


IN_A_PAGE: Final = Caps(command=2000, output=2000, error_output=1000)
# Twice all of it, and the rest of an execution, stay below RESULT_CHARACTERS.
ALONE: Final = Caps(command=5000, output=15_000, error_output=5000)

# What is left for the head and the foot of a page, and what JSON puts around them.
_PAGE_MARGIN: Final = 2000


def state_name(state: ExecutionState) -> str:
    """The contract's state as the tools say it."""
    return ExecutionState.Name(state).removeprefix("EXECUTION_STATE_").lower()


def legible(data: bytes, *, final: bool) -> tuple[str, bool]:
    r"""Bytes as text, and whether they are not UTF-8: such stand as \xNN.

    Unless it is the `final` part, half a character at its end is left out.
    """
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data, final), False
    except UnicodeDecodeError:
        return data.decode(errors="backslashreplace"), True


def _captured(output: Output, maximum: int) -> Captured:
    if output.WhichOneof("content") == "binary":
        whole, binary = legible(output.binary, final=True)
    else:
        whole, binary = output.text, False
    text = clip_quoted(whole, maximum)
    return Captured(
        text=text,
        size_bytes=output.size_bytes,
        truncated=output.truncated or text != whole,
        binary=binary or None,
    )


def row(execution: Execution, caps: Caps) -> ExecutionRow:
    """An execution as data."""
    command = clip_quoted(execution.command, caps.command)
    ended = execution.HasField("end_time")
    micros = execution.end_time.ToMicroseconds() - execution.start_time.ToMicroseconds()
    return ExecutionRow(
        sequence=execution.sequence,
        execution_id=execution.execution_id,
        state=state_name(execution.state),
        command=command,
        command_truncated=command != execution.command or None,
        capability=execution.capability,
        step=execution.step or None,
        output=_captured(execution.output, caps.output) if execution.HasField("output") else None,
        error_output=(
            _captured(execution.error_output, caps.error_output)
            if execution.HasField("error_output")
            else None
        ),
        exit_code=execution.exit_code if execution.HasField("exit_code") else None,
        start_time=instant(execution.start_time),
        end_time=instant(execution.end_time) if ended else None,
        duration_seconds=micros / 1_000_000 if ended else None,
    )


def text_of(shown: ExecutionRow, caps: Caps) -> str:
    """An execution as text: complete, since many clients show a model only this."""
    outcome = f"exit code {shown.exit_code}" if shown.exit_code is not None else shown.state
    took = "" if shown.duration_seconds is None else f", took {shown.duration_seconds:g} s"
    step = f", step {shortened(shown.step, 300)}" if shown.step else ""
    lines = [
        f"#{shown.sequence} {outcome}, {shown.capability}, started {shown.start_time}{took}{step}",
        f"$ {printable(shown.command)}",
    ]
    if shown.command_truncated:
        lines.append("… the command is longer; GetExecution of the gRPC API has it whole")
    for name, mark, output in (
        ("output", "| ", shown.output),
        ("error_output", "! ", shown.error_output),
    ):
        if output is None:
            continue
        if output.text:
            lines.append(quoted(output.text.removesuffix("\n"), mark))
        if output.truncated:
            lines.append(f"… {_rest(shown.sequence, name, output.size_bytes, caps)}")
    return "\n".join(lines)


def _rest(sequence: int, name: str, size_bytes: int, caps: Caps) -> str:
    head = f"only the beginning of {name}, which has {size_bytes:,} bytes"
    if caps is IN_A_PAGE:
        return f"{head}: call again with after_sequence {sequence - 1} and limit 1 for more"
    return (
        f"{head}: execution_read_output with sequence {sequence} has the rest (where it is not "
        "offered, ReadOutput of the gRPC API)"
    )


async def page(
    session: Session, executions: AsyncIterator[Execution], *, after_sequence: int, limit: int
) -> Answer:
    """As many executions as a result holds, and where the next ones are."""
    caps = ALONE if limit == 1 else IN_A_PAGE
    rows: list[ExecutionRow] = []
    texts: list[str] = []
    left = RESULT_CHARACTERS - _PAGE_MARGIN
    async for execution in executions:
        shown = row(execution, caps)
        text = text_of(shown, caps)
        left -= len(shown.model_dump_json(exclude_none=True)) + size(text) + 6
        if left < 0:
            break
        rows.append(shown)
        texts.append(text)
    last = rows[-1].sequence if rows else after_sequence
    total = max(session.execution_count, last if rows else 0)
    following = last if rows and last < total else None
    if rows:
        head = f"Executions {rows[0].sequence:,} to {last:,} of {total:,}"
    else:
        head = f"No executions after {after_sequence:,}; there are {total:,}"
    texts.insert(0, f"{head} in {session.session_id}, which is {status_name(session.status)}.")
    if following is not None:
        texts.append(f"There are more: call again with after_sequence {following}.")
    content = ExecutionPage(
        session_id=session.session_id,
        status=status_name(session.status),
        execution_count=total,
        executions=rows,
        next_after_sequence=following,
    )
    return Answer("\n\n".join(texts), content)
