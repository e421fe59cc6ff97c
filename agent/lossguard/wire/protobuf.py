"""The fields of a protocol buffer message, for formats of others that we read without their libraries.

Guarantees. Bytes from outside end in fields or in a `ProtobufError`; nothing is copied but where the caller's type of
bytes copies. What a field means, and whether it is signed, is the caller's to know.

A message is fields, one after the other: a varint of the number (times 8) and the kind, then the value. Kinds: 0 a
varint (7 bits a byte, the lowest first, the highest bit says that more follows; at most 10 bytes, of which 64 bits
count), 1 eight bytes, 5 four bytes, 2 a varint of a length and so many bytes. The groups of old (3, 4) are refused.
"""

from collections.abc import Iterator
from typing import Final, TypeVar

Bytes = TypeVar("Bytes", bytes, memoryview)
_MOST_BITS: Final = 70
_WORD: Final = (1 << 64) - 1
_WIDTHS: Final = {1: 8, 5: 4}


class ProtobufError(ValueError):
    """The bytes are no message, or one that is cut off."""


def varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it.

    >>> varint(bytes([0xAC, 0x02]), 0)
    (300, 2)

    Raises:
        ProtobufError: the number does not end.
    """
    value = shift = 0
    while at < len(data) and shift < _MOST_BITS:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & _WORD, at
        shift += 7
    raise ProtobufError("a number does not end")


def fields(message: Bytes) -> Iterator[tuple[int, int | Bytes]]:
    """Number and value of each field; values of a fixed width come as their bytes.

    >>> list(fields(bytes([0x08, 0x05, 0x12, 0x02, 0x68, 0x69])))
    [(1, 5), (2, b'hi')]

    Raises:
        ProtobufError: see there.
    """
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind = tag & 7
        if kind == 0:
            number, at = varint(message, at)
            yield tag >> 3, number
            continue
        if kind == 2:
            width, at = varint(message, at)
        elif kind in _WIDTHS:
            width = _WIDTHS[kind]
        else:
            raise ProtobufError(f"a field of kind {kind}")
        if at + width > len(message):
            raise ProtobufError("a field is longer than its message")
        yield tag >> 3, message[at : at + width]
        at += width
