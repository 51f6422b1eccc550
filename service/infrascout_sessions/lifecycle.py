"""The lifecycle of a session, as one table of data.

Read by the statement that changes a status, the constraint that guards it, the error that refuses
a change and the test that tries them all.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple


class Status(StrEnum):
    """Where a session stands; the value is what the database holds."""

    RUNNING = "running"
    PENDING_REVIEW = "pending_review"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Action(StrEnum):
    """What changes a status; the value is the name of its RPC."""

    SUBMIT = "SubmitSession"
    COMPLETE = "CompleteSession"
    FAIL = "FailSession"
    INTERRUPT = "InterruptSession"


class Transition(NamedTuple):
    """An action is allowed in any of `sources` and leads to `target`."""

    sources: frozenset[Status]
    target: Status


INITIAL: Final = Status.RUNNING

TRANSITIONS: Final[Mapping[Action, Transition]] = MappingProxyType(
    {
        Action.SUBMIT: Transition(frozenset({Status.RUNNING}), Status.PENDING_REVIEW),
        Action.COMPLETE: Transition(frozenset({Status.PENDING_REVIEW}), Status.COMPLETED),
        Action.FAIL: Transition(frozenset({Status.RUNNING}), Status.FAILED),
        Action.INTERRUPT: Transition(frozenset({Status.RUNNING}), Status.INTERRUPTED),
    }
)

FINAL: Final = frozenset(Status) - frozenset().union(
    *(transition.sources for transition in TRANSITIONS.values())
)
