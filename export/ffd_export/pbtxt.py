"""Write messages in protobuf's text format (protobuf.dev, "Text Format Language Specification")."""

from __future__ import annotations

from typing import TypeAlias


class Word(str):
    """A value that is written without quotes: an enum value, or `true`."""


Value: TypeAlias = "str | int | Word | tuple[int, ...] | Message"
# Fields in order; the name of a repeated field may repeat.
Message: TypeAlias = list[tuple[str, "Value"]]


def to_text(message: Message, indent: str = "") -> str:
    """Write a message in text format.

    Raises:
        ValueError: a text has a lone surrogate, which is invalid in a protobuf string.
    """
    return "".join(_field(name, value, indent) for name, value in message)


def _field(name: str, value: Value, indent: str) -> str:
    if isinstance(value, list):
        return f"{indent}{name} {{\n{to_text(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, tuple):
        return f"{indent}{name}: [{', '.join(map(str, value))}]\n"
    if isinstance(value, str) and not isinstance(value, Word):
        value = quote(value)
    return f"{indent}{name}: {value}\n"


def quote(text: str) -> str:
    r"""Write a string literal in ASCII.

    Other characters are written as octal escapes of their UTF-8 bytes. An escape always has three
    digits, so that a following digit cannot belong to it.

    Raises:
        ValueError: the text has a lone surrogate.

    Example:
        >>> print(quote('say "é1"'))
        "say \"\303\2511\""
    """
    return '"' + "".join(map(_escape, text.encode())) + '"'


def _escape(byte: int) -> str:
    if byte in b'"\\':
        return "\\" + chr(byte)
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}"
