"""The parameters of a tool, as data: their JSON schema, and what is wrong with given arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from google.protobuf.timestamp_pb2 import Timestamp

Kind = Literal["string", "integer", "time", "strings", "integers"]

INT32_MAXIMUM: Final = 2**31 - 1

_SCHEMAS: Final[Mapping[Kind, Mapping[str, Any]]] = {
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "time": {"type": "string", "format": "date-time"},
    "strings": {"type": "array", "items": {"type": "string"}},
    "integers": {"type": "array", "items": {"type": "integer"}},
}


@dataclass(frozen=True)
class Parameter:
    """One parameter. Numbers lie between `minimum` and `maximum`; the service checks the rest."""

    name: str
    description: str
    kind: Kind = "string"
    required: bool = False
    default: int | str | None = None
    choices: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = INT32_MAXIMUM

    def schema(self) -> dict[str, Any]:
        """The JSON schema of its value."""
        schema = {**_SCHEMAS[self.kind], "description": self.description}
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.kind == "integer":
            schema["minimum"] = self.minimum
        if self.default is not None:
            schema["default"] = self.default
        return schema


class ArgumentsError(Exception):
    """Arguments that a tool does not take: every one of them, and why."""

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        super().__init__(violations)
        self.violations = tuple(violations)


def schema(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """The JSON schema of a tool's arguments."""
    return {
        "type": "object",
        "properties": {each.name: each.schema() for each in parameters},
        "required": [each.name for each in parameters if each.required],
        "additionalProperties": False,
    }


def checked(parameters: Sequence[Parameter], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The values by name, defaults filled in; an optional one that is null is left out.

    Raises `ArgumentsError` with all that is wrong at once.
    """
    violations = [
        (name, _unknown(name))
        for name in arguments
        if name not in {parameter.name for parameter in parameters}
    ]
    values: dict[str, Any] = {}
    for parameter in parameters:
        value = arguments.get(parameter.name)
        # What a model leaves out it often sends as null, or as an empty text. Where any text may
        # stand, an empty one says something: an output that was captured, and is empty.
        free = parameter.kind == "string" and not parameter.choices
        if value is None or (value == "" and not free):
            value = parameter.default
        if value is None:
            if parameter.required:
                violations.append((parameter.name, "is required"))
            continue
        try:
            values[parameter.name] = _converted(parameter, value)
        except ValueError as error:
            violations.append((parameter.name, str(error)))
    if violations:
        raise ArgumentsError(violations)
    return values


def _unknown(name: str) -> str:
    if name == "agent_id":
        return "is not taken by this tool: the agent is the session's, leave it out"
    return "is not a parameter of this tool"


def _converted(parameter: Parameter, value: Any) -> Any:
    match parameter.kind:
        case "string":
            text = _text(value)
            if parameter.choices and text not in parameter.choices:
                raise ValueError(f"must be one of {', '.join(parameter.choices)}")
            return text
        case "integer":
            return _integer(value, parameter.minimum, parameter.maximum)
        case "time":
            return _time(value)
        case "strings":
            return [_text(item) for item in _list(value)]
        case "integers":
            return [_integer(item, 1, INT32_MAXIMUM) for item in _list(value)]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004 - what is wrong with a value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode: it holds a lone surrogate") from None
    return value


def _integer(value: Any, minimum: int, maximum: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("must be a whole number")  # noqa: TRY004 - what is wrong with a value
    if not minimum <= value <= maximum:
        raise ValueError(f"is {value}: it must be from {minimum} to {maximum:,}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("must be a list")  # noqa: TRY004 - what is wrong with a value
    return value


def _time(value: Any) -> Timestamp:
    time = Timestamp()
    try:
        time.FromJsonString(_text(value))
    except ValueError:
        raise ValueError("must be a time as in 2026-01-31T12:00:00Z") from None
    return time
