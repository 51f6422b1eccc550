"""Pages of lists."""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")

PAGE_BYTES: Final = 1024 * 1024
_DEFAULT_LIMIT: Final = 20
_MAXIMUM_LIMIT: Final = 200


def page_limit(limit: int) -> int:
    """How many a page holds at most; 0 asks for the default."""
    return min(limit or _DEFAULT_LIMIT, _MAXIMUM_LIMIT)


def fill(messages: Any, put: Callable[[Any, T], None], records: Sequence[T]) -> int:
    """Add records to a repeated field until it holds 1 MiB, but at least one; return how many."""
    size = 0
    for count, record in enumerate(records):
        message = messages.add()
        put(message, record)
        size += message.ByteSize() + 8
        if count and size > PAGE_BYTES:
            del messages[-1]
            return count
    return len(records)
