"""A schema is known by its bytes, and says the same as when it was first read."""

import json
import random

import pytest
from chunks import as_version_1, of_parts

from lossguard.wire import header
from lossguard.wire.chunk import AttemptStart, Chunk, ChunkId, CorruptChunk, decode, encode
from lossguard.wire.frame import Frames, Schema

SCHEMA = Schema(("loss",), ("a", "b"), ("norm",))


def names(scalar: str, layers: tuple[str, ...] = ("a", "b")) -> bytes:
    return json.dumps({"scalars": [scalar], "layers": layers, "stats": ["norm"]}).encode()


@pytest.fixture(autouse=True)
def _nothing_is_known() -> None:
    header._known_schema.cache_clear()


def test_a_schema_that_is_known_reads_like_one_that_is_not() -> None:
    chunks = [Chunk(ChunkId("p", "r", "a" * 32, n), Frames.of(SCHEMA, [n + 1], [[0.5]])) for n in range(3)]
    found = [decode(encode(chunk)) for chunk in chunks]
    about = header._known_schema.cache_info()
    assert (about.misses, about.hits) == (1, 2)
    assert [one.id.index for one in found] == [0, 1, 2]
    assert {one.frames.schema for one in found} == {SCHEMA}


def test_a_schema_that_was_refused_is_refused_again() -> None:
    for _ in range(2):
        with pytest.raises(CorruptChunk, match="printable"):
            header.read(of_parts(b"{}", names("\x07")))


def test_a_config_that_looks_like_a_schema_stays_a_config() -> None:
    start = AttemptStart(
        0, 1.0, {"tasks": {}, "schema": {"scalars": ["loss"], "layers": ["a", "b"], "stats": ["norm"]}}
    )
    frames = Frames.of(SCHEMA, [1], [[0.5]])
    for index in range(2):
        data = encode(Chunk(ChunkId("p", "r", "a" * 32, index), frames, events=(start,)))
        for form in (data, as_version_1(data)):
            assert decode(form).events == (start,)
            assert decode(form).frames.schema == SCHEMA


def test_what_is_known_is_bounded() -> None:
    for number in range(70):
        header.read(of_parts(b"{}", names(f"loss{number}")))
    before = header._known_schema.cache_info()
    assert before.currsize == 64
    # Names that do not compress, of more bytes than are remembered.
    long = tuple(random.Random(n).randbytes(128).hex() for n in range(700))
    for _ in range(2):
        header.read(of_parts(b"{}", names("loss", long)))
    assert header._known_schema.cache_info() == before
