"""How text is compared."""

from string import ascii_lowercase, ascii_uppercase

_TO_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


def ascii_lower(text: str) -> str:
    """ASCII letters in lower case, others as they are: the same on every database."""
    return text.translate(_TO_LOWER)
