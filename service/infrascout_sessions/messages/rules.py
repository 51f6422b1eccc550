"""The rules of every request, as one table (the contract's "Limits").

`check` finds every violation at once. Lengths are in code points, as Python counts them.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from infrascout.sessions.v1 import agent_service_pb2 as agent_service
from infrascout.sessions.v1 import execution_pb2, insight_pb2, session_pb2
from infrascout.sessions.v1 import recording_service_pb2 as recording_service
from infrascout.sessions.v1 import review_service_pb2 as review_service
from infrascout.sessions.v1 import session_service_pb2 as session_service
from infrascout_sessions.errors import InvalidRequest, Violation

MAXIMUM_OUTPUT_BYTES: Final = 1024 * 1024
MAXIMUM_INSIGHT_BYTES: Final = 1024 * 1024
MAXIMUM_CHUNK_BYTES: Final = 1024 * 1024
MAXIMUM_OFFSET: Final = 10_000
MAXIMUM_BATCH: Final = 1000
MAXIMUM_REQUEST_ID: Final = 64

_Found = Iterator[Violation]
_Rule = Callable[[str, Any], Sequence[Violation] | _Found]
_NOTHING: Final[tuple[Violation, ...]] = ()


def _pattern(pattern: str, description: str, *, required: bool = True) -> _Rule:
    matches = re.compile(pattern).fullmatch

    def rule(field: str, value: str) -> Sequence[Violation]:
        if not value:
            return (Violation(field, "is required"),) if required else _NOTHING
        return _NOTHING if matches(value) else (Violation(field, f"must be {description}"),)

    return rule


def _text(maximum: int, *, required: bool = False) -> _Rule:
    def rule(field: str, value: str) -> Sequence[Violation]:
        if required and (not value or value.isspace()):
            return (Violation(field, "must not be blank" if value else "is required"),)
        if len(value) > maximum:
            return (
                Violation(field, f"has {len(value):,} characters: at most {maximum:,} are allowed"),
            )
        if "\0" in value:
            return (Violation(field, "must not contain a NUL character"),)
        return _NOTHING

    return rule


def _each(rule: _Rule, maximum: int = 1000) -> _Rule:
    def rule_of_list(field: str, values: Sequence[Any]) -> _Found:
        if len(values) > maximum:
            yield Violation(field, f"has {len(values):,} items: at most {maximum:,} are allowed")
            return
        for index, value in enumerate(values):
            yield from rule(f"{field}[{index}]", value)

    return rule_of_list


def _at_least(minimum: int, maximum: int = 2**63) -> _Rule:
    def rule(field: str, value: int) -> Sequence[Violation]:
        if value < minimum:
            return (Violation(field, f"is {value}: it must be at least {minimum}"),)
        if value > maximum:
            return (Violation(field, f"is {value}: it must be at most {maximum:,}"),)
        return _NOTHING

    return rule


def _known(enum: Any, *, required: bool = False) -> _Rule:
    numbers = frozenset(enum.values())

    def rule(field: str, value: int) -> Sequence[Violation]:
        if required and not value:
            return (Violation(field, "is required"),)
        if value in numbers:
            return _NOTHING
        return (Violation(field, f"{value} is no value of {enum.DESCRIPTOR.name}"),)

    return rule


def _time(field: str, value: Timestamp) -> Sequence[Violation]:
    # From 0001-01-01 to the end of 9999, as timestamp.proto has it.
    if -62_135_596_800 <= value.seconds <= 253_402_300_799 and 0 <= value.nanos <= 999_999_999:
        return _NOTHING
    return (Violation(field, "is no time between the years 1 and 9999"),)


def _output(field: str, value: Any) -> Sequence[Violation]:
    kind = value.WhichOneof("content")
    size = len(value.text.encode()) if kind == "text" else len(value.binary)
    if size <= MAXIMUM_OUTPUT_BYTES:
        return _NOTHING
    return (Violation(field, f"has {size:,} bytes: at most {MAXIMUM_OUTPUT_BYTES:,} are allowed"),)


def _chunk(field: str, value: bytes) -> Sequence[Violation]:
    size = len(value)
    if size <= MAXIMUM_CHUNK_BYTES:
        return _NOTHING
    return (Violation(field, f"has {size:,} bytes: at most {MAXIMUM_CHUNK_BYTES:,} are allowed"),)


_ID_FORM: Final = r"[A-Za-z0-9._:-]{1,128}"
_ID_DESCRIPTION: Final = "1 to 128 of A-Z a-z 0-9 . _ : -"
_ID = _pattern(_ID_FORM, _ID_DESCRIPTION)
_ID_FILTER = _pattern(_ID_FORM, _ID_DESCRIPTION, required=False)
_CAPABILITY = _pattern(
    r"[a-z][a-z0-9_]{0,63}", "a lower-case letter and up to 63 of a-z 0-9 _, as in shell"
)
_REQUEST_ID = _text(MAXIMUM_REQUEST_ID)
_REASON = _text(4096, required=True)
_LIMIT = _at_least(0)
_LINES = _each(_text(4096))
_SEQUENCE = _at_least(1)
_STREAM = _known(execution_pb2.OutputStream, required=True)

_RULES: Final[Mapping[type[Message], tuple[tuple[str, _Rule], ...]]] = {
    agent_service.RegisterAgentRequest: (
        ("agent_id", _ID),
        ("hostname", _text(253, required=True)),
        ("os", _text(200)),
        ("capabilities", _each(_CAPABILITY)),
        ("request_id", _REQUEST_ID),
    ),
    agent_service.GetAgentRequest: (("agent_id", _ID),),
    agent_service.ListAgentsRequest: (
        ("hostname", _text(253)),
        ("limit", _LIMIT),
    ),
    session_service.StartSessionRequest: (
        ("agent_id", _ID),
        ("playbook", _text(200, required=True)),
        ("description", _text(4096)),
        ("request_id", _REQUEST_ID),
    ),
    session_service.GetSessionRequest: (("session_id", _ID),),
    session_service.ListSessionsRequest: (
        ("agent_id", _ID_FILTER),
        ("hostname", _text(253)),
        ("playbook", _text(200)),
        ("status", _known(session_pb2.SessionStatus)),
        ("started_from", _time),
        ("started_before", _time),
        ("limit", _LIMIT),
        ("offset", _at_least(0, MAXIMUM_OFFSET)),
    ),
    session_service.ListExecutionsRequest: (
        ("session_id", _ID),
        ("after_sequence", _at_least(0)),
        ("limit", _LIMIT),
        ("max_output_bytes", _at_least(0)),
    ),
    session_service.GetExecutionRequest: (
        ("session_id", _ID),
        ("sequence", _SEQUENCE),
    ),
    session_service.ReadOutputRequest: (
        ("session_id", _ID),
        ("sequence", _SEQUENCE),
        ("stream", _STREAM),
        ("offset", _at_least(0)),
    ),
    session_service.ListInsightsRequest: (("session_id", _ID),),
    session_service.SubmitSessionRequest: (
        ("session_id", _ID),
        ("summary", _text(65_536, required=True)),
        ("request_id", _REQUEST_ID),
    ),
    session_service.FailSessionRequest: (
        ("session_id", _ID),
        ("reason", _REASON),
        ("request_id", _REQUEST_ID),
    ),
    session_service.InterruptSessionRequest: (
        ("session_id", _ID),
        ("reason", _REASON),
        ("request_id", _REQUEST_ID),
    ),
    review_service.CompleteSessionRequest: (
        ("session_id", _ID),
        ("comment", _text(4096)),
        ("request_id", _REQUEST_ID),
    ),
    recording_service.RecordExecutionRequest: (
        ("session_id", _ID),
        ("command", _text(65_536, required=True)),
        ("capability", _CAPABILITY),
        ("output", _output),
        ("error_output", _output),
        ("start_time", _time),
        ("end_time", _time),
        ("step", _text(200)),
        ("request_id", _REQUEST_ID),
    ),
    recording_service.BeginExecutionRequest: (
        ("session_id", _ID),
        ("command", _text(65_536, required=True)),
        ("capability", _CAPABILITY),
        ("start_time", _time),
        ("step", _text(200)),
        ("request_id", _REQUEST_ID),
    ),
    recording_service.AppendOutputRequest: (
        ("session_id", _ID),
        ("sequence", _SEQUENCE),
        ("stream", _STREAM),
        ("offset", _at_least(0)),
        ("data", _chunk),
    ),
    recording_service.FinishExecutionRequest: (
        ("session_id", _ID),
        ("sequence", _SEQUENCE),
        ("end_time", _time),
        ("request_id", _REQUEST_ID),
    ),
    recording_service.SaveInsightRequest: (
        ("session_id", _ID),
        ("category", _text(200, required=True)),
        ("key", _text(200, required=True)),
        ("value", _text(65_536, required=True)),
        ("severity", _known(insight_pb2.Severity)),
        ("evidence", _text(65_536)),
        ("affected_resources", _LINES),
        ("remediation_steps", _LINES),
        ("execution_sequences", _each(_at_least(1))),
        ("request_id", _REQUEST_ID),
    ),
}


def _record_execution(request: recording_service.RecordExecutionRequest) -> Sequence[Violation]:
    if not request.HasField("start_time"):
        return (Violation("start_time", "is required"),)
    if request.HasField("end_time"):
        start, end = request.start_time, request.end_time
        if (end.seconds, end.nanos) < (start.seconds, start.nanos):
            return (Violation("end_time", "is before start_time"),)
    return _NOTHING


def _requires(field: str) -> Callable[[Any], _Found]:
    def rule(request: Message) -> _Found:
        if not request.HasField(field):
            yield Violation(field, "is required")

    return rule


def _list_executions(request: session_service.ListExecutionsRequest) -> _Found:
    if request.follow:
        for field in ("failed_only", "limit"):
            if getattr(request, field):
                yield Violation(field, "cannot be used together with follow")


def _save_insight(request: recording_service.SaveInsightRequest) -> _Found:
    size = request.ByteSize()
    if size > MAXIMUM_INSIGHT_BYTES:
        yield Violation(
            "", f"the insight has {size:,} bytes: at most {MAXIMUM_INSIGHT_BYTES:,} are allowed"
        )


# Rules of several fields.
_RULES_ACROSS: Final[Mapping[type[Message], Callable[[Any], Sequence[Violation] | _Found]]] = {
    session_service.ListExecutionsRequest: _list_executions,
    recording_service.RecordExecutionRequest: _record_execution,
    recording_service.BeginExecutionRequest: _requires("start_time"),
    recording_service.FinishExecutionRequest: _requires("end_time"),
    recording_service.SaveInsightRequest: _save_insight,
}


# All fields of a message at once, then the rule of each.
_PLANS: Final = {
    kind: (attrgetter(*(field for field, _ in rules), "DESCRIPTOR"), rules)
    for kind, rules in _RULES.items()
}


_matches_id = re.compile(_ID_FORM).fullmatch


def is_id(value: str) -> bool:
    """Whether it has the form that the rules ask of the id of a session or an agent."""
    return _matches_id(value) is not None


def violations(request: Message) -> list[Violation]:
    """Every field of the request that breaks a rule."""
    kind = type(request)
    values, rules = _PLANS[kind]
    found: list[Violation] = []
    for (field, rule), value in zip(rules, values(request), strict=False):
        wrong = rule(field, value)
        if wrong:
            found.extend(wrong)
    across = _RULES_ACROSS.get(kind)
    if across is not None:
        found.extend(across(request))
    return found


def check(request: Message) -> None:
    """Raise `InvalidRequest` with every violation, if there is one."""
    found = violations(request)
    if found:
        raise InvalidRequest(found)
