"""The one table that turns a refusal into its code and reason (the contract's "Errors")."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Final, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from infrascout.sessions.v1 import error_reason_pb2
from infrascout.sessions.v1 import recording_service_pb2 as recording_service
from infrascout_sessions import errors
from infrascout_sessions.errors import InvalidRequest, Refusal, Violation
from infrascout_sessions.lifecycle import Status

DOMAIN: Final = "sessions.infrascout"

_MAXIMUM_VIOLATIONS: Final = 20
_MAXIMUM_VIOLATIONS_BYTES: Final = 4096


class Answer(NamedTuple):
    """How a kind of refusal is answered; with a delay it carries RetryInfo."""

    code: grpc.StatusCode
    reason: str
    retry_after_seconds: float | None = None


_CODE = grpc.StatusCode

ANSWERS: Final[Mapping[type[Refusal], Answer]] = {
    errors.InvalidRequest: Answer(_CODE.INVALID_ARGUMENT, "INVALID_REQUEST"),
    errors.PageTokenInvalid: Answer(_CODE.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"),
    errors.AgentNotFound: Answer(_CODE.NOT_FOUND, "AGENT_NOT_FOUND"),
    errors.SessionNotFound: Answer(_CODE.NOT_FOUND, "SESSION_NOT_FOUND"),
    errors.ExecutionNotFound: Answer(_CODE.NOT_FOUND, "EXECUTION_NOT_FOUND"),
    errors.AgentBusy: Answer(_CODE.FAILED_PRECONDITION, "AGENT_BUSY"),
    errors.IllegalTransition: Answer(_CODE.FAILED_PRECONDITION, "ILLEGAL_TRANSITION"),
    errors.SessionNotRunning: Answer(_CODE.FAILED_PRECONDITION, "SESSION_NOT_RUNNING"),
    errors.ExecutionFinished: Answer(_CODE.FAILED_PRECONDITION, "EXECUTION_FINISHED"),
    errors.OutputTooLarge: Answer(_CODE.FAILED_PRECONDITION, "OUTPUT_TOO_LARGE"),
    errors.OutputOffsetMismatch: Answer(_CODE.ABORTED, "OUTPUT_OFFSET_MISMATCH"),
    errors.OutputOffsetBeyondEnd: Answer(_CODE.OUT_OF_RANGE, "OUTPUT_OFFSET_BEYOND_END"),
    errors.RequestIdReused: Answer(_CODE.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
    errors.ProofMissingOrInvalid: Answer(_CODE.UNAUTHENTICATED, "PROOF_MISSING_OR_INVALID"),
    errors.RoleMissing: Answer(_CODE.PERMISSION_DENIED, "ROLE_MISSING"),
    errors.ReviewerNotHuman: Answer(_CODE.PERMISSION_DENIED, "REVIEWER_NOT_HUMAN"),
    errors.ReviewerNotIndependent: Answer(_CODE.PERMISSION_DENIED, "REVIEWER_NOT_INDEPENDENT"),
    errors.QuotaExceeded: Answer(_CODE.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", 1),
    errors.StorageFull: Answer(_CODE.RESOURCE_EXHAUSTED, "STORAGE_FULL"),
    errors.Overloaded: Answer(_CODE.UNAVAILABLE, "OVERLOADED", 0.2),
    errors.DatabaseUnavailable: Answer(_CODE.UNAVAILABLE, "DATABASE_UNAVAILABLE", 1),
    errors.ShuttingDown: Answer(_CODE.UNAVAILABLE, "SHUTTING_DOWN", 1),
}

INTERNAL: Final = Answer(_CODE.INTERNAL, "INTERNAL_ERROR")
_INTERNAL_MESSAGE: Final = "internal error"


def _metadata(refusal: Refusal) -> dict[str, str]:
    """The data of a refusal; a status by the name that the contract has for it."""
    if isinstance(refusal, InvalidRequest) or not is_dataclass(refusal):
        return {}
    values = {field.name: getattr(refusal, field.name) for field in fields(refusal)}
    return {
        name: f"SESSION_STATUS_{value.name}" if isinstance(value, Status) else str(value)
        for name, value in values.items()
    }


def bounded(violations: tuple[Violation, ...] | list[Violation]) -> list[Violation]:
    """The first violations, within what trailing metadata can carry; the last says how many more.

    Details over 8 KiB fail at random, over 16 KiB always.
    """
    kept: list[Violation] = []
    size = 0
    for violation in violations:
        size += len(violation.field.encode()) + len(violation.description.encode()) + 8
        if len(kept) == _MAXIMUM_VIOLATIONS - 1 or size > _MAXIMUM_VIOLATIONS_BYTES - 100:
            break
        kept.append(violation)
    left = len(violations) - len(kept)
    if left == 1 and size <= _MAXIMUM_VIOLATIONS_BYTES - 100:
        kept.append(violations[-1])
    elif left:
        kept.append(Violation("", f"and {left} more violations"))
    return kept


def _details(refusal: Refusal | None, answer: Answer) -> list[Message]:
    info = error_details_pb2.ErrorInfo(reason=answer.reason, domain=DOMAIN)
    details: list[Message] = [info]
    if refusal is not None:
        info.metadata.update(_metadata(refusal))
    if isinstance(refusal, InvalidRequest):
        bad_request = error_details_pb2.BadRequest()
        for violation in bounded(list(refusal.violations)):
            bad_request.field_violations.add(
                field=violation.field, description=violation.description
            )
        details.append(bad_request)
    if answer.retry_after_seconds is not None:
        delay = Duration()
        delay.FromMicroseconds(round(answer.retry_after_seconds * 1_000_000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def answer_to(error: Exception) -> Answer:
    """The code and the reason for an error; whatever has no row is internal."""
    return ANSWERS.get(type(error), INTERNAL) if isinstance(error, Refusal) else INTERNAL


def _public(error: Exception, answer: Answer) -> tuple[Refusal | None, str]:
    """The refusal and the text that may be told."""
    if isinstance(error, Refusal) and answer is not INTERNAL:
        return error, error.message
    return None, _INTERNAL_MESSAGE


def status_of(error: Exception) -> tuple[grpc.StatusCode, str, bytes]:
    """Code, message and serialised `google.rpc.Status` that an error is answered with."""
    answer = answer_to(error)
    refusal, message = _public(error, answer)
    status = status_pb2.Status(code=answer.code.value[0], message=message)
    for detail in _details(refusal, answer):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return answer.code, message, status.SerializeToString()


def put_refusal(message: recording_service.Refusal, error: Exception) -> None:
    """Fill a message with what would have been the status for an error."""
    answer = answer_to(error)
    refusal, message.message = _public(error, answer)
    message.code = answer.code.value[0]
    message.reason = error_reason_pb2.ErrorReason.Value(  # type: ignore[assignment]
        f"ERROR_REASON_{answer.reason}"
    )
    if refusal is not None:
        message.metadata.update(_metadata(refusal))
    if isinstance(refusal, InvalidRequest):
        for violation in bounded(list(refusal.violations)):
            message.violations.add(field=violation.field, description=violation.description)
