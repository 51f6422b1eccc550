"""The options of `serve`, made of the table of settings."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from infrascout_sessions.config import Settings


def of_settings(command: Callable[[Settings], None]) -> Callable[..., None]:
    """The command with an option for each setting, in the order of the table."""

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
        command(Settings(**values))

    with_options.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]
    return with_options


def _parameters() -> list[inspect.Parameter]:
    hints = get_type_hints(Settings, include_extras=True)
    parameters = []
    for setting in fields(Settings):
        kind, option = get_args(hints[setting.name])
        default: Any = setting.default
        if get_origin(kind) is tuple:
            # What Typer calls a tuple has a number of values that is known.
            kind, default = list[str], list(default)
        parameters.append(
            inspect.Parameter(
                setting.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[kind, option],
            )
        )
    return parameters
