"""The metadata of an ONNX file, read without loading its graph.

An ONNX file is one protobuf message, `ModelProto` of onnx.proto. This module parses its fields as
described by protobuf.dev, "Encoding", and skips all but the metadata. Creating a session only to
read the card would take seconds for a large network.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Field numbers in onnx.proto.
METADATA_PROPS, KEY, VALUE = 14, 1, 2
# Protobuf's wire types, and the size of the fixed ones in bytes.
VARINT, DELIMITED = 0, 2
FIXED = {1: 8, 5: 4}


def read_metadata(path: Path) -> dict[str, str]:
    """Return the `metadata_props` of an ONNX file; for a repeated key, the last value.

    The result is empty for an invalid file, which loading the model reports.
    """
    try:
        with path.open("rb") as file:
            return dict(_entry(content) for content in _contents(file, METADATA_PROPS))
    except (OSError, ValueError):
        return {}


def _entry(content: bytes) -> tuple[str, str]:
    """Return key and value of a `StringStringEntryProto`; an absent one is empty."""
    key, value = (
        (list(_contents(io.BytesIO(content), number)) or [b""])[-1] for number in (KEY, VALUE)
    )
    return key.decode(), value.decode()


def _contents(file: BinaryIO, wanted: int) -> Iterator[bytes]:
    """Yield the contents of a message's length-delimited fields with one number.

    Raises:
        ValueError: the message is invalid or truncated.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    while file.tell() < size:
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _varint(file)
            continue
        if kind not in FIXED and kind != DELIMITED:
            raise ValueError(f"unknown wire type {kind}")
        length = FIXED[kind] if kind in FIXED else _varint(file)
        if number == 0 or length > size - file.tell():
            raise ValueError("the message is invalid or truncated")
        if kind == DELIMITED and number == wanted:
            yield file.read(length)
        else:
            file.seek(length, os.SEEK_CUR)


def _varint(file: BinaryIO) -> int:
    """Read a number of up to 64 bits, with seven bits in each byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("the message is truncated")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than 64 bits")
