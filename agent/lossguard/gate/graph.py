"""Looks for NaN in the constants of a SavedModel's graph, without TensorFlow: a frozen model has its weights there.

Guarantees. The file is mapped, not read whole; every constant of every graph and function is looked at. Infinities are
passed over, for masks are made of them, and so are scalars, with which graphs compare. Bytes that are no SavedModel end
in a `ProtobufError`.

A SavedModel is a protocol buffer: meta graphs (2), each with a graph (2) of nodes (1) and a library (2) of functions
(1), which have nodes too (3). A node has a name (1) and attributes (5), pairs of which the second (2) may be a tensor
(8) or a list (1) of tensors (8). A tensor has a type (1), a shape (2) and its values, as bytes (4) or as numbers.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from lossguard.gate.findings import BLOCK_BYTES
from lossguard.wire.protobuf import fields, varint

_TYPES: Final[dict[int, Any]] = {1: "<f4", 2: "<f8", 8: "<f4", 18: "<f8", 19: "<f2", 14: "<u2"}
"""TensorFlow's number of a type, and what its bytes are; a complex number is two, a bfloat16 is looked at by bits."""
_NUMBERS: Final = {5: "<f4", 6: "<f8", 9: "<f4", 12: "<f8"}
"""The fields that hold numbers as they are, packed."""
_HALVES: Final = 13
"""The field that holds numbers of two bytes, each as a varint."""
_BFLOAT16: Final = 14


def broken_constants(path: Path) -> Iterator[tuple[str, int, int]]:
    """The constants that hold NaN: the node's name, how many values are stored, and how many of them are NaN.

    Raises:
        ProtobufError: the file is no SavedModel.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        # Closed when the last view of it is gone: while there is one, it cannot be.
        model = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for node in _nodes(model):
        name = next((bytes(part[:500]).decode("utf-8", "replace") for part in _parts(node, 1)), "")
        for attribute in _parts(node, 5):
            for tensor in _tensors(attribute):
                count, bad = _look(tensor)
                if bad:
                    yield name, count, bad


def _parts(message: memoryview, number: int) -> Iterator[memoryview]:
    for found, value in fields(message):
        if found == number and isinstance(value, memoryview):
            yield value


def _nodes(model: memoryview) -> Iterator[memoryview]:
    for meta in _parts(model, 2):
        for graph in _parts(meta, 2):
            yield from _parts(graph, 1)
            for library in _parts(graph, 2):
                for function in _parts(library, 1):
                    yield from _parts(function, 3)


def _tensors(attribute: memoryview) -> Iterator[memoryview]:
    for value in _parts(attribute, 2):
        yield from _parts(value, 8)
        for several in _parts(value, 1):
            yield from _parts(several, 8)


def _look(tensor: memoryview) -> tuple[int, int]:
    """How many values are stored in a tensor, and how many are NaN; none for a scalar and what is not of floats."""
    kind, size, found = 0, 1, []
    for number, value in fields(tensor):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, memoryview):
            size = _size(value)
        elif number == 4 or number in _NUMBERS or number == _HALVES:
            found.append((number, value))
    if kind not in _TYPES or size < 2:
        return 0, 0
    count = bad = 0
    for number, value in found:
        if number == _HALVES:
            bits = [value] if isinstance(value, int) else [*_varints(value)]
            values = np.array(bits, np.uint16).view(_TYPES[kind] if kind == 19 else "<u2")
        elif isinstance(value, memoryview):
            numbers = np.dtype(_NUMBERS.get(number, _TYPES[kind]))
            values = np.frombuffer(value[: len(value) // numbers.itemsize * numbers.itemsize], numbers)
        else:
            continue
        count += len(values)
        bad += sum(_nans(values[at : at + BLOCK_BYTES], kind) for at in range(0, len(values), BLOCK_BYTES))
    return count, bad


def _nans(values: Any, kind: int) -> int:
    if kind == _BFLOAT16:
        return int(np.count_nonzero((values & np.uint16(0x7FFF)) > np.uint16(0x7F80)))
    return int(np.count_nonzero(np.isnan(values)))


def _size(shape: memoryview) -> int:
    size = 1
    for dimension in _parts(shape, 2):
        size *= next((value for number, value in fields(dimension) if number == 1 and isinstance(value, int)), 0)
    return size


def _varints(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = varint(packed, at)
        yield value & 0xFFFF
