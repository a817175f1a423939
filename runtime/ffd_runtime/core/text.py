"""Text for people: safe file names, counts, and the first line of an exception."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape control, format and surrogate characters.

    They could move a terminal's cursor, break a line, or reverse the direction of text.

    Example:
        >>> printable("a\\x1b[31m\\n\\udcff")
        'a\\\\x1b[31m\\\\n\\\\xff'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_safe(c) else _escape(c) for c in text)


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, in the plural unless the count is 1.

    Example:
        >>> counted(1, "thread"), counted(2, "thread")
        ('1 thread', '2 threads')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def first_line(error: BaseException | str) -> str:
    """Return the first line of an exception's text, or the name of its type when it has none.

    Example:
        >>> first_line(ValueError("no such file\\n  at line 3")), first_line(KeyError())
        ('no such file', 'KeyError')
    """
    return next(iter(str(error).splitlines()), type(error).__name__)


def _is_safe(character: str) -> bool:
    import unicodedata

    return character == " " or unicodedata.category(character)[0] not in "CZ"


def _escape(character: str) -> str:
    point = ord(character)
    if 0xDC80 <= point <= 0xDCFF:
        return f"\\x{point - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
