"""How a call ends that is not answered OK."""

from dataclasses import dataclass, field
from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from infrascout.sessions.v1.recording_service_pb2 import RecordExecutionRequest

DOMAIN: Final = "sessions.infrascout"
_DETAILS_KEY: Final = "grpc-status-details-bin"


@dataclass(eq=False)
class CallError(Exception):
    """A call was refused, or not answered; branch on `reason`, and on `code` where it is empty."""

    code: grpc.StatusCode
    message: str
    """The server's text, for people; gRPC's own where there is no `reason`."""
    reason: str = ""
    """The `ErrorReason` without its prefix. Empty if not the service but gRPC refused."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What the reason names: ids, mostly."""
    violations: tuple[tuple[str, str], ...] = ()
    """Of INVALID_REQUEST: every field that breaks a rule, and how."""
    retry_after_seconds: float | None = None
    """When to try again, where the server says so."""
    request_id: str = ""
    """Of a write: what to repeat it with, to learn what became of it."""
    requests: tuple[RecordExecutionRequest, ...] = ()
    """Of `record_executions`: those taken out of what the caller gave and not answered, each with
    its `request_id`. To be sent again, and nothing is recorded twice; then what is left."""

    def __str__(self) -> str:
        return f"{self.code.name}{f' {self.reason}' if self.reason else ''}: {self.message}"

    @property
    def unanswered(self) -> bool:
        """Whether nobody answered: a write may have happened all the same, or not."""
        return self.reason in ("", "DATABASE_UNAVAILABLE", "SHUTTING_DOWN") and self.code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.UNKNOWN,
        )


def _code(error: grpc.aio.AioRpcError) -> grpc.StatusCode:
    """The code, and UNAVAILABLE where grpc.aio could not write, because the connection is gone."""
    if error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core":
        return grpc.StatusCode.UNAVAILABLE
    return error.code()


def call_error(error: grpc.aio.AioRpcError, request_id: str = "") -> CallError:
    """What gRPC raised, with the details that the server sent."""
    refused = CallError(_code(error), error.details() or "", request_id=request_id)
    for detail in _status(error).details:
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        retry_info = error_details_pb2.RetryInfo()
        # A proxy on the way may put in details of its own: their domain is another.
        if detail.Unpack(info) and info.domain == DOMAIN:
            refused.reason, refused.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad_request):
            refused.violations = tuple(
                (violation.field, violation.description)
                for violation in bad_request.field_violations
            )
        elif detail.Unpack(retry_info):
            refused.retry_after_seconds = retry_info.retry_delay.ToMicroseconds() / 1_000_000
    return refused


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()
