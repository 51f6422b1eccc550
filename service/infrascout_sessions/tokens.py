"""Bearer tokens of the service's own: how they look, and what is kept of them."""

import re
import secrets
from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from infrascout_sessions.models import HUMANS_ONLY, RESERVED_SUBJECTS, ActorKind, NewToken, Role

PREFIX: Final = "infrascout_"
"""What every token begins with, so that scanners for leaked secrets can find one."""

_SECRET_BYTES: Final = 32
_FORM: Final = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/+-]{0,127}")


class TokenError(Exception):
    """A token cannot be issued or revoked; the text says why and what to do."""


def digest_of(token: str) -> bytes:
    """What is kept of a token. It has 256 random bits, so no slow hash is needed."""
    return sha256(token.encode()).digest()


def has_form(token: str) -> bool:
    """Whether it looks like a token, so that it is worth a look into the database."""
    return _FORM.fullmatch(token) is not None


def issue(
    name: str, kind: ActorKind, roles: Iterable[Role], expire_time: int | None
) -> tuple[str, NewToken]:
    """A new token, and what is to be kept of it.

    Raises `TokenError`.
    """
    granted = frozenset(roles)
    if not _NAME.fullmatch(name):
        raise TokenError(
            f"{name!r} is no name for a caller: take 1 to 128 of A-Z a-z 0-9 . _ @ : / + - "
            "with a letter or digit first"
        )
    if name in RESERVED_SUBJECTS:
        raise TokenError(f"{name} is the server's own name: choose another one")
    if not granted:
        raise TokenError("a token without a role is good for nothing: give it one with --role")
    if kind is ActorKind.SERVICE and granted & HUMANS_ONLY:
        raise TokenError(
            "only a human reviews: a service cannot have the role reviewer; "
            "leave that out, or make the token with --human for a person"
        )
    token = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    return token, NewToken(digest_of(token), name, kind, granted, expire_time)
