"""Text for a model: cut to size, safe to show, short."""

import json
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from infrascout.sessions.v1.actor_pb2 import Actor, ActorKind

CUT: Final = "…"


def size(text: str) -> int:
    """How many characters a text takes in JSON, without its quotes."""
    return len(json.dumps(text, ensure_ascii=False)) - 2


def clip(text: str, maximum: int) -> str:
    """The head of a text that takes at most so many characters in JSON."""
    head = text[:maximum]
    while (taken := size(head)) > maximum:
        head = head[: len(head) * maximum // taken]
    return head


def quoted(text: str, mark: str = "| ") -> str:
    """What a host printed, marked line by line: it stays apart from what these tools say."""
    return mark + printable(text).replace("\n", f"\n{mark}")


def clip_quoted(text: str, maximum: int) -> str:
    """The head of a text that, in JSON, takes at most so many characters plain and quoted."""
    head = clip(text, maximum)
    while (taken := size(quoted(head))) > maximum:
        head = head[: min(len(head) * maximum // taken, len(head) - 1)]
    return head


def shortened(text: str, maximum: int) -> str:
    """A text on one line, cut to size, with a sign where it was cut."""
    line = printable(" ".join(text.split()))
    head = clip(line, maximum)
    return head if head == line else head + CUT


def printable(text: str) -> str:
    """The text with control characters spelled out: what a host printed commands no terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text
    )


def counted(number: int, noun: str) -> str:
    """A number and its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def instant(time: Timestamp) -> str:
    """A time as RFC 3339, in UTC."""
    return time.ToJsonString()


def actor(who: Actor) -> str:
    """Who did something: `human ada@example.com`."""
    kind = ActorKind.Name(who.kind).removeprefix("ACTOR_KIND_").lower()
    return f"{kind} {shortened(who.subject, 300)}"
