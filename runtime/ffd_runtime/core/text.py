"""Text for people: safe file names, counts, durations, and the first line of an exception."""

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
    import unicodedata

    return "".join(
        c if c == " " or unicodedata.category(c)[0] not in "CZ" else _escape(c) for c in text
    )


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, in the plural unless the count is 1.

    Example:
        >>> counted(1, "thread"), counted(2, "thread")
        ('1 thread', '2 threads')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """Return a duration to the second.

    Example:
        >>> format_duration(59.7), format_duration(7201)
        ('1 min 0 s', '2 h 1 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{count} {unit}" for count, unit in ((hours, "h"), (minutes, "min")) if count]
    return " ".join([*parts, f"{rest} s"])


def first_line(error: BaseException | str) -> str:
    """Return the first line of an exception's text, or the name of its type when it has none.

    Example:
        >>> first_line(ValueError("no such file\\n  at line 3")), first_line(KeyError())
        ('no such file', 'KeyError')
    """
    return next(iter(str(error).splitlines()), type(error).__name__)


def _escape(character: str) -> str:
    point = ord(character)
    if 0xDC80 <= point <= 0xDCFF:
        return f"\\x{point - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
