"""What a tool is: its words, its parameters and result, and the function behind it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from mcp_types import Tool as ToolDefinition
from mcp_types import ToolAnnotations
from pydantic import BaseModel

from infrascout_sessions.mcp.parameters import Parameter, schema
from infrascout_sessions.mcp.results import output_schema

RESULT_CHARACTERS: Final = 60_000
"""The most a result has: its JSON as it is sent, text and structured content together."""


@dataclass(frozen=True)
class Answer:
    """What a tool answers: a short text to read, and the same as data."""

    text: str
    content: BaseModel


READS: Final = ToolAnnotations(
    read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)
ADDS: Final = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False
)
ADDS_ONCE: Final = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)
# Nothing is lost, but nothing can be added any more, and no tool undoes it: a client that asks its
# user before what is destructive should ask here, too.
ENDS: Final = ToolAnnotations(
    read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
)


@dataclass(frozen=True)
class Tool:
    """One tool. `handler` takes a client and the arguments by name."""

    name: str
    title: str
    description: str
    parameters: tuple[Parameter, ...]
    result: type[BaseModel]
    hints: ToolAnnotations
    handler: Callable[..., Awaitable[Answer]]

    def definition(self) -> ToolDefinition:
        """As it is listed."""
        return ToolDefinition(
            name=self.name,
            title=self.title,
            description=self.description,
            input_schema=schema(self.parameters),
            output_schema=output_schema(self.result),
            annotations=self.hints,
        )


SESSION_ID: Final = Parameter(
    "session_id", "The session's id, as session_start gave it: sess_…", required=True
)
