"""The reader of protocol buffer messages: what was written comes back, and any bytes end in an answer."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossguard.wire.protobuf import ProtobufError, fields, varint

NUMBERS = st.integers(1, 2**29 - 1)
VALUES = st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=20))


def written(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, VALUES), max_size=6))
def test_what_was_written_comes_back(message: list[tuple[int, int | bytes]]) -> None:
    data = b""
    for number, value in message:
        if isinstance(value, int):
            data += written(number << 3) + written(value)
        else:
            kind = {4: 5, 8: 1}.get(len(value), 2)
            data += written(number << 3 | kind) + (written(len(value)) if kind == 2 else b"") + value
    assert list(fields(data)) == message
    assert [(n, v if isinstance(v, int) else bytes(v)) for n, v in fields(memoryview(data))] == message


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_end_in_an_answer(data: bytes) -> None:
    with contextlib.suppress(ProtobufError):
        list(fields(data))


@pytest.mark.parametrize("data", [b"\x80", b"\xff" * 11, b"\x12\x05ab", b"\x0d\x01\x02", b"\x0b"])
def test_what_is_no_message_says_so(data: bytes) -> None:
    with pytest.raises(ProtobufError):
        list(fields(data))


def test_a_number_of_more_than_64_bits_loses_what_is_above_them() -> None:
    assert varint(b"\xff" * 9 + b"\x7f", 0) == (2**64 - 1, 10)
