"""The header's names are known by their bytes, and wherever they stand the header says the same."""

import json
import struct

import pytest
import zstandard
from chunks import with_valid_crc
from hypothesis import given, settings
from hypothesis import strategies as st

from lossguard.wire import header
from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, CorruptChunk, decode, encode
from lossguard.wire.frame import Frames, Schema

SCHEMA = Schema(("loss",), ("a", "b"), ("norm",))
PLAIN = ',"schema":{"scalars":["loss"],"layers":["a","b"],"stats":["norm"]}'


def of(plain: str) -> bytes:
    """A chunk of no sections with this text as its header."""
    packed = zstandard.compress(plain.encode())
    return with_valid_crc(b"LGC\x01" + bytes(4) + struct.pack("<II", len(packed), len(plain.encode())) + packed)


@pytest.fixture(autouse=True)
def _nothing_is_known() -> None:
    header._known.clear()


def test_a_schema_that_is_known_reads_like_one_that_is_not() -> None:
    chunks = [Chunk(ChunkId("p", "r", "a" * 32, n), Frames.of(SCHEMA, [n + 1], [[0.5]])) for n in range(3)]
    found = [decode(encode(chunk)) for chunk in chunks]
    assert len(header._known) == 1
    assert [one.id.index for one in found] == [0, 1, 2]
    assert {one.frames.schema for one in found} == {SCHEMA}


PIECES = ['"a":1', PLAIN[1:], '"b":"\\"schema\\":{"', '"c":{"x":1' + PLAIN + "}", '"schema":7', "{", "}", " ", ",", '"']


@settings(max_examples=300)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map(",".join), min_size=2, max_size=6))
def test_what_is_known_changes_no_reading(inners: list[str]) -> None:
    for inner in [*inners, *inners]:
        data = of("{" + inner + "}")
        try:
            found, names, _ = header.read(data)
        except CorruptChunk:
            names = None
        try:
            document = json.loads("{" + inner + "}")
            expected = header._schema(document) if isinstance(document, dict) else None
        except (ValueError, CorruptChunk):
            expected = None
        assert names == expected
        if names is not None:
            assert found | {"schema": document["schema"]} == document


def test_a_config_that_looks_like_a_schema_stays_a_config() -> None:
    start = AttemptStart(
        0, 1.0, {"tasks": {}, "schema": {"scalars": ["loss"], "layers": ["a", "b"], "stats": ["norm"]}}
    )
    frames = Frames.of(SCHEMA, [1], [[0.5]])
    for index in range(2):
        chunk = Chunk(ChunkId("p", "r", "a" * 32, index), frames, events=(start,))
        assert decode(encode(chunk)).events == (start,)


def test_what_is_known_is_bounded() -> None:
    for number in range(70):
        header.read(of('{"a":1' + PLAIN.replace("loss", f"loss{number}") + "}"))
    assert len(header._known) == 64
    long = "x" * 500
    header.read(of('{"a":1' + PLAIN.replace('"a"', ",".join(f'"{long}{n}"' for n in range(140))) + "}"))
    assert all(len(known) <= 65_536 for known in header._known)
