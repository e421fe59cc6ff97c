"""TensorBoard event files, without TensorFlow: the scalars in them.

Bytes: records of length (8 bytes, little endian), a checksum (4), the data, a checksum (4). The data is a protobuf
`Event`: wall_time = 1 (double), step = 2 (varint), summary = 5; a summary's values are its field 1, each with tag = 1,
simple_value = 2 (float) or tensor = 8 (dtype = 1, shape = 2, tensor_content = 4, float_val = 5, double_val = 6, int_val
= 7, half_val = 13, int64_val = 10). Only scalars of floats and integers are read. Checksums are not verified: they are
CRC-32C, which Python does not bring, and a torn last record, the one damage that is ordinary, shows by its length
(docs/decisions/0103-event-files-by-hand.md).
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from lossguard.trace.trace import Trace, TraceError, of_rows
from lossguard.wire.protobuf import fields

RECORD_BYTES = 64 << 20
"""A longer record is no record of scalars: the file is damaged or something else."""

_FLOAT, _DOUBLE, _INT32, _INT64 = 1, 2, 3, 9
_FORMATS = {_FLOAT: "<f", _DOUBLE: "<d", _INT32: "<i", _INT64: "<q"}


def read(path: Path, given: Mapping[str, str]) -> Trace:
    """Read the scalars of an event file.

    Raises:
        TraceError: not an event file, or one without scalars.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: {error}") from None
    rows: list[tuple[int, dict[str, float]]] = []
    try:
        for record in _records(data):
            step, values = _event(record)
            if values:
                rows.append((step, values))
    except (struct.error, IndexError, ValueError) as error:
        if not rows:
            raise TraceError(f"{path}: not a TensorBoard event file ({error})") from None
    try:
        return of_rows(path.parent.name or path.name, rows, given, {})
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def _records(data: bytes) -> Iterator[memoryview]:
    """The records; a torn last one is left out."""
    view, at = memoryview(data), 0
    while at + 12 <= len(view):
        (length,) = struct.unpack_from("<Q", view, at)
        if length > RECORD_BYTES:
            raise ValueError(f"a record of {length} bytes at offset {at}")
        if at + 16 + length > len(view):
            return
        yield view[at + 12 : at + 12 + length]
        at += 16 + length


def _event(data: memoryview) -> tuple[int, dict[str, float]]:
    step, values = 0, {}
    for field, value in fields(data):
        if field == 2 and isinstance(value, int):
            step = value - (1 << 64) if value >> 63 else value
        elif field == 5 and isinstance(value, memoryview):
            for inner, item in fields(value):
                if inner == 1 and isinstance(item, memoryview):
                    tag, number = _value(item)
                    if tag and number is not None:
                        values[tag] = number
    return step, values


def _value(data: memoryview) -> tuple[str, float | None]:
    tag, number = "", None
    for field, value in fields(data):
        if not isinstance(value, memoryview):
            continue
        if field == 1:
            tag = bytes(value).decode("utf-8", "replace")
        elif field == 2:
            number = float(struct.unpack("<f", value)[0])
        elif field == 8:
            number = _tensor(value)
    return tag, number


def _tensor(data: memoryview) -> float | None:
    """The number of a scalar tensor; None for anything else."""
    dtype = 0
    number: float | None = None
    for field, value in fields(data):
        if field == 1 and isinstance(value, int):
            dtype = value
        elif field == 2 and isinstance(value, memoryview) and len(value):
            return None
        elif field in (4, 5, 6, 7, 10) and dtype in _FORMATS:
            if isinstance(value, int):
                number = float(value)
            elif len(value) == struct.calcsize(_FORMATS[dtype]):
                number = float(struct.unpack(_FORMATS[dtype], value)[0])
    return number
