"""Chunks: what goes in comes out, and nothing else gets in."""

import json
import math
import struct

import numpy as np
import pytest
import zstandard
from chunks import CHUNKS, EVENTS, as_version_1, of_parts, parts_of, with_header, with_valid_crc
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lossguard.wire import chunk as wire
from lossguard.wire.arrays import pack
from lossguard.wire.chunk import (
    AttemptStart,
    Chunk,
    ChunkError,
    ChunkId,
    ChunkTooLarge,
    CorruptChunk,
    TruncatedChunk,
    UnsupportedVersion,
    decode,
    encode,
    outline,
    peek,
    round_mantissa,
)
from lossguard.wire.frame import Frames, Schema

ID = ChunkId("ads", "ranker", "0" * 32, 3)
FLOATS = st.integers(0, (1 << 32) - 1).map(lambda raw: np.uint32(raw))


def small(**changes: object) -> Chunk:
    frames = Frames.of(Schema(("loss",), ("a", "b"), ("g",)), range(1, 41), np.arange(40.0)[:, None], None)
    return Chunk(**({"id": ID, "frames": frames} | changes))  # type: ignore[arg-type]


def same(one: Frames, other: Frames) -> bool:
    return one.schema == other.schema and all(
        getattr(one, name).tobytes() == getattr(other, name).tobytes()
        for name in ("steps", "times", "scalars", "scalars_present", "stats_present")
    )


@given(CHUNKS)
def test_decoding_gives_back_what_was_encoded(chunk: Chunk) -> None:
    data = encode(chunk, mantissa_bits=23)
    found = decode(data)
    assert (found.id, found.drops, found.events) == (chunk.id, chunk.drops, chunk.events)
    assert same(found.frames, chunk.frames)
    assert np.array_equal(found.frames.stats, chunk.frames.stats, equal_nan=True)
    assert np.array_equal(
        np.signbit(found.frames.stats), np.signbit(chunk.frames.stats) & ~np.isnan(chunk.frames.stats)
    )


@given(CHUNKS)
def test_the_outline_agrees_with_the_whole(chunk: Chunk) -> None:
    data = encode(chunk)
    about = outline(data)
    assert about.id == peek(data) == chunk.id
    assert about.frames == len(chunk.frames)
    if len(chunk.frames):
        assert about.last_step == chunk.frames.steps[-1]
    else:
        assert about.last_step == (chunk.events[-1].step if chunk.events else None)


@given(CHUNKS)
def test_encoding_twice_gives_the_same_bytes(chunk: Chunk) -> None:
    assert encode(chunk) == encode(decode(encode(chunk)))


@given(st.lists(FLOATS, min_size=1, max_size=50), st.integers(1, 23))
@example([np.uint32(0x7F7FFFFF), np.uint32(0x7F800001), np.uint32(0x7FFFFFFF), np.uint32(0xFF800000)], 10)
def test_rounding_is_to_nearest_and_spares_what_is_no_number(raw: list[np.uint32], bits: int) -> None:
    values = np.array(raw, np.uint32).view(np.float32)
    rounded = round_mantissa(values, bits)
    assert np.array_equal(np.isnan(rounded), np.isnan(values))
    assert np.array_equal(np.isinf(rounded), np.isinf(values))
    assert np.all(rounded[values == 0] == 0)
    finite = np.isfinite(values)
    exact, got = values[finite].astype(np.float64), rounded[finite].astype(np.float64)
    normal = np.abs(exact) >= 2.0**-126
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(got - exact) / np.abs(exact)
    largest = np.abs(exact) > 2.0**127 * (2 - 2.0**-bits)
    assert np.all(error[normal & ~largest] <= 2.0 ** -(bits + 1))
    assert np.array_equal(got[largest], exact[largest])
    assert np.array_equal(round_mantissa(rounded, bits), rounded, equal_nan=True), "rounding again changes nothing"


def test_rounding_has_no_bias() -> None:
    values = np.random.default_rng(0).lognormal(size=200_000).astype(np.float32)
    error = (round_mantissa(values, 10).astype(np.float64) - values) / values
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(error.size)


@given(CHUNKS, st.data())
def test_any_cut_is_named(chunk: Chunk, data: st.DataObject) -> None:
    whole = encode(chunk)
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ChunkError):
        decode(whole[:end])
    with pytest.raises(ChunkError):
        decode(with_valid_crc(whole[:end]))


@given(CHUNKS, st.data())
def test_any_flipped_bit_is_noticed(chunk: Chunk, data: st.DataObject) -> None:
    whole = bytearray(encode(chunk))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ChunkError):
        decode(bytes(whole))


@settings(max_examples=300)
@given(CHUNKS, st.data())
def test_lies_behind_a_valid_checksum_end_in_a_chunk_or_in_a_chunk_error(chunk: Chunk, data: st.DataObject) -> None:
    whole = bytearray(encode(chunk))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        new = data.draw(st.binary(min_size=1, max_size=8))
        whole[at : at + len(new)] = new
    for read in (decode, outline):
        try:
            read(with_valid_crc(bytes(whole)))
        except ChunkError:
            continue


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    for bytes_ in (data, *(with_valid_crc(b"LGC" + version + data) for version in (b"\x01", b"\x02"))):
        with pytest.raises(ChunkError):
            decode(bytes_)


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": 41},
        {"frames": -1},
        {"frames": True},
        {"frames": 39},
        {"frames": None},
        {"sections": [0, 0, 0, 0, 0, 0]},
        {"sections": [1 << 60] * 6},
        {"sections": []},
        {"sections": None},
        {"schema": {"scalars": ["loss"], "layers": ["a", "b", "c"], "stats": ["g"]}},
        {"schema": {"scalars": ["loss"], "layers": ["a", "a"], "stats": ["g"]}},
        {"schema": {"scalars": [1], "layers": [], "stats": []}},
        {"schema": {"scalars": ["bell\u0007"], "layers": ["a", "b"], "stats": ["g"]}},
        {"schema": None},
        {"attempt": "G" * 32},
        {"attempt": "0" * 31},
        {"project": "../etc"},
        {"project": "a/b"},
        {"run": ""},
        {"run": "x" * 129},
        {"run": "\ud800"},
        {"index": -1},
        {"index": 1 << 60},
        {"index": 1.5},
        {"drops": {"queue_full": -1}},
        {"drops": []},
        {"events": [{"type": "checkpoint", "step": 1, "time": 10**400, "path": "p", "has_slots": True}]},
        {"events": [{"type": "checkpoint", "step": 1, "time": "now", "path": "p", "has_slots": True}]},
        {"events": [{"type": "checkpoint", "step": 1, "time": 1, "path": "nul\u0000", "has_slots": True}]},
        {"events": [{"type": "checkpoint", "step": 1, "time": 1, "path": "p", "has_slots": 1}]},
        {"events": [{"type": "attempt_stop", "step": 1, "time": 1, "reason": "bored"}]},
        {"events": [{"type": "attempt_stop", "step": 1, "time": 1, "reason": "failed", "skipped_steps": -1}]},
        {"events": [{"type": "attempt_start", "step": 1, "time": 1, "config": {"a": {"b": "\u0000"}}}]},
        {"events": [{"type": "attempt_start", "step": 1, "time": 1, "config": {"a": [1 << 70]}}]},
        {"events": [{"type": "party", "step": 1, "time": 1}]},
        {"events": [7]},
        {"events": {}},
    ],
    ids=str,
)
def test_a_lie_in_the_header_is_a_corrupt_chunk(changes: dict[str, object]) -> None:
    with pytest.raises((CorruptChunk, TruncatedChunk)) as refused:
        decode(with_header(encode(small()), **changes))
    assert str(refused.value)


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": 1e999}', "[" * 100_000, "[]", "", "\ufffe", '"x"'])
def test_a_header_that_is_no_plain_json_object_is_refused(text: str) -> None:
    header, schema, _ = parts_of(encode(small()))
    with pytest.raises(CorruptChunk):
        decode(of_parts(text.encode(), json.dumps(schema).encode()))
    with pytest.raises(CorruptChunk):
        decode(of_parts(json.dumps(header).encode(), text.encode()))
    packed = zstandard.compress(text.encode())
    sizes = struct.pack("<II", len(packed), len(text.encode()))
    with pytest.raises(CorruptChunk):
        decode(with_valid_crc(b"LGC\x01" + bytes(4) + sizes + packed))


def test_infinite_config_numbers_do_not_get_in() -> None:
    start = encode(small(events=(AttemptStart(0, 1.0, {"rate": 12345.5}),)))
    new = start.replace(b"12345.5", b"1e99999")
    assert new != start
    with pytest.raises(CorruptChunk, match="finite"):
        decode(with_valid_crc(new))


@pytest.mark.parametrize("name", ["scalars", "layers", "stats"])
def test_encoding_refuses_what_decoding_would_refuse(name: str) -> None:
    names = {"scalars": ("s",), "layers": ("l",), "stats": ("k",)} | {name: ("tab\t",)}
    with pytest.raises(CorruptChunk, match="printable"):
        encode(small(frames=Frames.of(Schema(**names), [1], [[0.0]])))


@given(EVENTS)
def test_events_survive(event: wire.Event) -> None:
    assert decode(encode(small(events=(event,)))).events == (event,)


def test_a_newer_version_says_update() -> None:
    data = encode(small())
    with pytest.raises(UnsupportedVersion, match="update"):
        decode(data[:3] + b"\x03" + data[4:])


@given(CHUNKS)
def test_the_head_of_version_1_reads_the_same(chunk: Chunk) -> None:
    data = encode(chunk)
    old, new = decode(as_version_1(data)), decode(data)
    assert (old.id, old.drops, old.events) == (new.id, new.drops, new.events)
    assert same(old.frames, new.frames)
    assert old.frames.stats.tobytes() == new.frames.stats.tobytes()
    assert outline(as_version_1(data)) == outline(data)


def test_a_version_is_not_taken_for_another() -> None:
    for data, other in ((encode(small()), b"\x01"), (as_version_1(encode(small())), b"\x02")):
        with pytest.raises(ChunkError):
            decode(data[:3] + other + data[4:])


def test_a_header_bomb_is_too_large_before_it_is_unpacked() -> None:
    packed = zstandard.compress(bytes(1 << 28))
    bomb = b"LGC\x01" + bytes(4) + struct.pack("<II", len(packed), 1 << 28) + packed
    with pytest.raises(ChunkTooLarge):
        decode(with_valid_crc(bomb))
    with pytest.raises(CorruptChunk):
        decode(with_valid_crc(bomb[:12] + struct.pack("<I", 1000) + bomb[16:]))
    bomb = b"LGC\x02" + bytes(4) + struct.pack("<III", 2, len(packed), 1 << 28) + b"{}" + packed
    with pytest.raises(ChunkTooLarge):
        decode(with_valid_crc(bomb))
    with pytest.raises(CorruptChunk):
        decode(with_valid_crc(bomb[:16] + struct.pack("<I", 1000) + bomb[20:]))


def test_an_array_bomb_is_too_large_before_it_is_unpacked() -> None:
    zeros = Frames.of(
        Schema((), tuple(map(str, range(1000))), ("g",)),
        range(1, 1001),
        np.empty((1000, 0)),
        np.zeros((1000, 1000, 1), "f4"),
    )
    bomb = encode(Chunk(ID, zeros))
    assert len(bomb) < 10_000 < zeros.stats.nbytes
    assert len(decode(bomb).frames) == 1000
    with pytest.raises(ChunkTooLarge, match="1000000"):
        decode(bomb, max_decoded_bytes=1_000_000)
    with pytest.raises(ChunkTooLarge):
        decode(with_header(bomb, frames=1 << 30))
    with pytest.raises(ChunkTooLarge):
        decode(
            with_header(
                bomb, frames=60_000, schema={"scalars": [], "layers": [str(i) for i in range(60_000)], "stats": ["g"]}
            )
        )


@pytest.mark.parametrize("steps", [[0], [-5, 1], [1, 1 << 53]])
def test_steps_are_counted_from_one(steps: list[int]) -> None:
    with pytest.raises(CorruptChunk, match="steps"):
        encode(small(frames=Frames.of(Schema(("loss",)), steps, [[0.0]] * len(steps))))


def forged(section: bytes, place: int = 4) -> bytes:
    """A chunk of which one section was replaced by other bytes."""
    header, schema, sections = parts_of(encode(small()))
    sizes = header["sections"]
    begin = sum(sizes[:place])
    body = sections[:begin] + section + sections[begin + sizes[place] :]
    header["sections"] = [*sizes[:place], len(section), *sizes[place + 1 :]]
    return of_parts(json.dumps(header).encode(), json.dumps(schema).encode(), body)


def test_steps_without_a_gap_are_their_first_and_others_an_array() -> None:
    gapless = struct.pack("<Bq", 9, 7)
    assert decode(forged(gapless, 0)).frames.steps.tolist() == list(range(7, 47))
    assert outline(forged(gapless, 0)).last_step == 46
    assert decode(forged(pack(np.arange(7, 87, 2)), 0)).frames.steps.tolist() == list(range(7, 87, 2))
    for first in (0, -1, (1 << 53) - 39, (1 << 63) - 1):
        for read in (decode, outline):
            with pytest.raises(CorruptChunk, match="steps"):
                read(forged(struct.pack("<Bq", 9, first), 0))
    assert outline(forged(struct.pack("<Bq", 9, (1 << 53) - 40), 0)).last_step == (1 << 53) - 1
    with pytest.raises(CorruptChunk):
        decode(forged(gapless + b"x", 0))


def test_a_forged_section_is_a_corrupt_chunk() -> None:
    assert decode(forged(pack(np.sin(np.arange(80, dtype=np.float32))))).frames.stats.shape == (40, 2, 1)
    for section in (b"", b"\x00\x00", b"\x05", b"\x04junk", pack(np.ones(81, np.float32))):
        with pytest.raises(CorruptChunk):
            decode(forged(section))


def test_unknown_keys_of_the_header_are_passed_over() -> None:
    assert decode(with_header(encode(small()), later={"more": 1})).id == ID


def test_the_json_of_the_names_is_ascii() -> None:
    plain, packed, _ = struct.unpack_from(
        "<III", data := encode(small(frames=Frames.of(Schema(("perte/é",)), [1], [[0.0]]))), 8
    )
    assert zstandard.decompress(data[20 + plain : 20 + plain + packed]).isascii()
    assert decode(data).frames.schema.scalars == ("perte/é",)
