"""Page tokens: where a page ended, bound to the filters of its list.

A token is the base64url of a checksum and the position as JSON. The checksum covers the filters
too, so a token for other filters, a cut one and a made-up one are refused alike. It is no secret:
a token shows nothing that its list does not.
"""

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Any

from infrascout_sessions.errors import PageTokenInvalid

_CHECKSUM_BYTES = 12


def _checksum(filters: object, position: bytes) -> bytes:
    bound = json.dumps(filters, separators=(",", ":")).encode()
    return blake2b(position, digest_size=_CHECKSUM_BYTES, key=blake2b(bound).digest()).digest()


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def make(filters: object, position: object) -> str:
    """A token; `filters` and `position` are JSON values."""
    encoded = json.dumps(position, separators=(",", ":")).encode()
    return _text(_checksum(filters, encoded) + encoded)


def read(filters: object, token: str) -> Any:
    """The position in a token that was made with the same filters.

    Raises `PageTokenInvalid`.
    """
    try:
        data = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    except (UnicodeEncodeError, binascii.Error, ValueError):
        data = b""
    position = data[_CHECKSUM_BYTES:]
    # Decoding forgives stray characters; there is one way to write a token.
    if _text(data) != token or data[:_CHECKSUM_BYTES] != _checksum(filters, position):
        raise PageTokenInvalid(
            "is none that this list gave for these filters: "
            "leave it empty to begin at the first page"
        )
    return json.loads(position)
