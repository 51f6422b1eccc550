"""Sessions, as results and as text."""

from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from infrascout.sessions.v1.session_pb2 import Session, SessionStatus
from infrascout_sessions.mcp.results import (
    Review,
    SessionDetail,
    SessionPage,
    SessionRow,
    Transition,
)
from infrascout_sessions.mcp.texts import actor, clip, counted, instant, printable, shortened, size
from infrascout_sessions.mcp.tools import RESULT_CHARACTERS, Answer

_PREFIX: Final = "SESSION_STATUS_"

STATUSES: Final = tuple(
    name.removeprefix(_PREFIX).lower()
    for name, number in SessionStatus.items()
    if number != SessionStatus.SESSION_STATUS_UNSPECIFIED
)

# How many characters of the long fields a result holds: all of them together stay below
# RESULT_CHARACTERS whatever is in them.
_DETAIL: Final = {"summary": 15_000, "description": 4500, "status_reason": 4500}
_ROW: Final = {"summary": 300, "description": 300, "status_reason": 300}
_TRANSITION_REASON: Final = 300
_TEXT_LINE: Final = 1000
# The service takes no greater one.
_MAXIMUM_OFFSET: Final = 10_000
# What is left for the head of a page, and what JSON puts around it.
_PAGE_MARGIN: Final = 2000


def status_value(name: str) -> str:
    """The contract's name of the status that a filter names; any, if it is empty."""
    return f"{_PREFIX}{name.upper() or 'UNSPECIFIED'}"


def status_name(status: SessionStatus) -> str:
    """The contract's status as the tools say it."""
    return SessionStatus.Name(status).removeprefix(_PREFIX).lower()


def _time(session: Session, field: str) -> str | None:
    time: Timestamp = getattr(session, field)
    return instant(time) if session.HasField(field) else None


def _fields(session: Session, maxima: dict[str, int]) -> dict[str, Any]:
    texts = {name: clip(getattr(session, name), maximum) for name, maximum in maxima.items()}
    cut_short = [name for name, text in texts.items() if text != getattr(session, name)]
    return {
        "session_id": session.session_id,
        "agent_id": session.agent_id,
        "hostname": session.hostname,
        "playbook": session.playbook,
        "status": status_name(session.status),
        "execution_count": session.execution_count,
        "failed_execution_count": session.failed_execution_count,
        "insight_count": session.insight_count,
        "start_time": instant(session.start_time),
        "last_activity_time": instant(session.last_activity_time),
        "submit_time": _time(session, "submit_time"),
        "end_time": _time(session, "end_time"),
        "cut_short": cut_short or None,
        **{name: text or None for name, text in texts.items()},
    }


def detail(session: Session) -> SessionDetail:
    """A session with everything about it."""
    review = None
    if session.HasField("review"):
        review = Review(
            by=actor(session.review.reviewer),
            comment=clip(session.review.comment, 4500) or None,
            time=instant(session.review.time),
        )
    transitions = [
        Transition(
            status=status_name(step.status),
            time=instant(step.time),
            by=actor(step.actor),
            reason=clip(step.reason, _TRANSITION_REASON) or None,
        )
        for step in session.transitions
    ]
    return SessionDetail(**_fields(session, _DETAIL), transitions=transitions, review=review)


def line(session: Session) -> str:
    """A session on one line."""
    counts = counted(session.execution_count, "execution")
    if session.failed_execution_count:
        counts += f" ({session.failed_execution_count:,} failed)"
    return (
        f"{session.session_id}: {status_name(session.status)}, "
        f"{shortened(session.playbook, 300)} on {shortened(session.hostname, 300)} "
        f"({session.agent_id}), started {instant(session.start_time)}, {counts}, "
        f"{counted(session.insight_count, 'insight')}"
    )


def described(session: Session) -> str:
    """A session as text: the line, and what was written about it."""
    lines = [line(session)]
    if session.description:
        lines.append(f"Description: {shortened(session.description, _TEXT_LINE)}")
    if session.status_reason:
        lines.append(f"Why: {shortened(session.status_reason, _TEXT_LINE)}")
    lines.extend(
        f"- {instant(step.time)} {status_name(step.status)}, by {actor(step.actor)}"
        for step in session.transitions
    )
    if session.summary:
        lines.append(f"Summary: {clip(printable(session.summary), _DETAIL['summary'])}")
    if session.HasField("review"):
        comment = shortened(session.review.comment, _TEXT_LINE)
        lines.append(
            f"Reviewed by {actor(session.review.reviewer)}{': ' if comment else ''}{comment}"
        )
    return "\n".join(lines)


def page(sessions: list[Session], *, offset: int, more: bool, total: int, capped: bool) -> Answer:
    """As many of the sessions as a result holds, and where the next ones are."""
    rows: list[SessionRow] = []
    lines: list[str] = []
    left = RESULT_CHARACTERS - _PAGE_MARGIN
    for session in sessions:
        row = SessionRow(**_fields(session, _ROW))
        text = line(session)
        left -= len(row.model_dump_json(exclude_none=True)) + size(text) + 4
        if left < 0:
            more = True
            break
        rows.append(row)
        lines.append(text)
    next_offset = offset + len(rows) if more else None
    of_all = f"of {'more than ' if capped else ''}{total:,}"
    if rows:
        head = f"Sessions {offset + 1:,} to {offset + len(rows):,} {of_all}, most recent first."
    else:
        head = f"No session at offset {offset:,} {of_all}." if total else "No session matches."
    if next_offset is not None and next_offset > _MAXIMUM_OFFSET:
        next_offset = None
        lines.append(
            "There are more, beyond any offset: narrow the filters agent_id, hostname, playbook "
            "and status to find them."
        )
    if next_offset is not None:
        lines.append(f"For more, call again with offset {next_offset}.")
    content = SessionPage(sessions=rows, total_size=total, next_offset=next_offset)
    return Answer("\n".join([head, *lines]), content)
