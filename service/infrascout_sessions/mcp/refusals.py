"""Refusals, as a model reads them: what is wrong, what to do, the reason and the ids."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc
from mcp_types import CallToolResult, TextContent

from infrascout_sessions.client import CallError
from infrascout_sessions.mcp.texts import clip, printable

# What to do, in the words of the tools; the service's own messages name its RPCs. The metadata of
# the reason is filled in.
_ADVICE: Final[Mapping[str, str]] = {
    "INVALID_REQUEST": "Correct what is listed and call again.",
    "AGENT_NOT_FOUND": "Check the agent_id with the user. No tool here enrols an agent; "
    "session_list shows the agents that have had sessions.",
    "SESSION_NOT_FOUND": "Check the session_id; session_list finds a session by its agent, "
    "hostname, playbook or status.",
    "EXECUTION_NOT_FOUND": "session_list_executions shows the sequences that session {session_id} "
    "has.",
    "AGENT_BUSY": "Go on in session {session_id} if it is yours. Otherwise ask the user whether it "
    "may be handed to review, call session_submit with session_id {session_id} and a summary, and "
    "then session_start again.",
    "ILLEGAL_TRANSITION": "Do not repeat this: only a running session can be submitted. "
    "session_get shows how session {session_id} stands; for more work open another with "
    "session_start.",
    "SESSION_NOT_RUNNING": "Do not repeat this: session {session_id} takes no more records. For "
    "more work open another with session_start.",
    "REQUEST_ID_REUSED": "Call the tool again.",
    "OUTPUT_OFFSET_BEYOND_END": "Call again with an offset of at most {size_bytes}.",
    "STORAGE_FULL": "Nothing was written. Tell the user that the service's disk is full; retrying "
    "helps only once somebody has made room.",
    "QUOTA_EXCEEDED": "Wait a little, then call again, less often.",
    "OVERLOADED": "Wait a little, then call again.",
    "DATABASE_UNAVAILABLE": "Wait a little, then call again.",
    "SHUTTING_DOWN": "Wait a little, then call again.",
    "PROOF_MISSING_OR_INVALID": "Tell the user that the service wants a valid token: over stdio it "
    "is configured as INFRASCOUT_TOKEN, over HTTP it is the Authorization header.",
    "ROLE_MISSING": "Do not repeat this. Tell the user that whom the token names may not do it.",
    "INTERNAL_ERROR": "Tell the user that the service has a fault; its log has the rest.",
}

# What gRPC itself reports; its texts name addresses and libraries, so they are not passed on.
_UNANSWERED: Final[Mapping[grpc.StatusCode, tuple[str, str]]] = {
    grpc.StatusCode.UNAVAILABLE: (
        "the session service cannot be reached",
        "Tell the user that it does not answer, or try again later.",
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        "the session service did not answer in time",
        "Try again later; if it stays so, tell the user.",
    ),
    grpc.StatusCode.UNIMPLEMENTED: (
        "the session service does not know this call",
        "Tell the user that the service is of an older version than these tools.",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        "the message is larger than the session service accepts",
        "Call again with less: at most 4 MiB in all.",
    ),
    grpc.StatusCode.UNAUTHENTICATED: (
        "the session service does not accept the caller",
        _ADVICE["PROOF_MISSING_OR_INVALID"],
    ),
    grpc.StatusCode.PERMISSION_DENIED: (
        "the session service does not let the caller do this",
        _ADVICE["ROLE_MISSING"],
    ),
}
_FAULT: Final = ("the call failed", "Tell the user; the log of these tools has the rest.")

_UNKNOWN_OUTCOME: Final = (
    " Whether it was done is not known: look with session_list or session_get before you repeat it."
)
_MAXIMUM_MESSAGE: Final = 4000
_META_KEY: Final = "sessions.infrascout/error"


class UnusableCallError(Exception):
    """A call that cannot be made at all; the texts say why, and what to do."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class _Known(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return f"the {key}"


def refused(error: CallError, *, writes: bool) -> CallToolResult:
    """A call that the service refused, or did not answer."""
    if error.reason:
        message = error.message
        advice = _ADVICE.get(error.reason, "").format_map(_Known(error.metadata))
    else:
        message, advice = _UNANSWERED.get(error.code, _FAULT)
    if writes and error.unanswered:
        advice += _UNKNOWN_OUTCOME
    reason = error.reason or error.code.name
    return tool_error(message, advice, reason, error.metadata, error.violations)


def tool_error(
    message: str,
    advice: str,
    reason: str,
    metadata: Mapping[str, str] | None = None,
    violations: Sequence[tuple[str, str]] = (),
) -> CallToolResult:
    """An error that the model reads; programs find the same under `_meta`."""
    lines = [clip(printable(message), _MAXIMUM_MESSAGE)]
    lines += [clip(f"- {field or 'as a whole'}: {text}", 500) for field, text in violations]
    if advice:
        lines.append(f"What to do: {advice}")
    lines.append(f"Reason: {reason}")
    lines += [f"{name}: {value}" for name, value in sorted((metadata or {}).items())]
    about: dict[str, Any] = {"reason": reason, "metadata": dict(metadata or {})}
    return CallToolResult(
        content=[TextContent(type="text", text="\n".join(lines))],
        is_error=True,
        _meta={_META_KEY: about},
    )
