"""Bytes that an old version wrote are read for ever, and broken ones end in the same named errors."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from make_wire_and_journal import ATTEMPT, SCHEMA, frames, identity, noise

from lossguard.journal.reader import AttemptReader
from lossguard.wire import chunk as wire
from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, ChunkError, decode, outline

HERE = Path(__file__).parent
VERSIONS = pytest.mark.parametrize("version", ["wire_v1", "wire_v2"])
BROKEN = sorted(HERE.glob("wire_v?/broken/*.chunk"))


def read(version: str, name: str) -> wire.Chunk:
    return decode((HERE / version / f"{name}.chunk").read_bytes())


@VERSIONS
def test_an_attempt_that_starts(version: str) -> None:
    chunk = read(version, "start")
    assert chunk.id == identity(0)
    assert chunk.events == (AttemptStart(0, 1.7e9, {"tasks": {"click": "binary"}, "clip": "Infinity"}),)
    assert len(chunk.frames) == 0


@VERSIONS
@pytest.mark.parametrize(("name", "index"), [("rounded", 1), ("lossless", 2)])
def test_frames_with_everything_numbers_can_be(version: str, name: str, index: int) -> None:
    chunk, wanted = read(version, name), frames()
    found = chunk.frames
    assert (chunk.id, found.schema) == (identity(index), SCHEMA)
    for field in ("steps", "times", "scalars", "scalars_present", "stats_present"):
        assert getattr(found, field).tobytes() == getattr(wanted, field).tobytes(), field
    if name == "lossless":
        assert np.array_equal(found.stats, wanted.stats, equal_nan=True)
    else:
        assert np.array_equal(found.stats, wire.round_mantissa(wanted.stats, 10), equal_nan=True)
        assert found.stats[3, 0].tolist() == [3.140625, 2.71875]
    assert math.isnan(found.stats[1, 0, 0])
    assert found.stats[1, 0, 1] == math.inf
    assert outline((HERE / version / f"{name}.chunk").read_bytes()).last_step == 1 << 40


@pytest.mark.parametrize("bits", [6, 10, 23])
def test_stats_of_which_some_are_noise(bits: int) -> None:
    chunk, wanted = read("wire_v2", f"noise-{bits}"), noise()
    assert (chunk.id, chunk.frames.schema) == (identity(3), wanted.schema)
    assert chunk.frames.steps.tolist() == list(range(100, 132))
    rounded = wire.round_mantissa(wanted.stats, bits)
    assert np.ascontiguousarray(chunk.frames.stats).tobytes() == rounded.tobytes()
    assert b"\xff\x04\0\xa0" in (HERE / "wire_v2" / "noise-23.chunk").read_bytes(), (
        "the first and the third stand apart"
    )


@VERSIONS
def test_drops_and_events(version: str) -> None:
    assert read(version, "rounded").drops == {"queue_full": 3, "disk_full": 1}
    assert read(version, "lossless").events == (
        Checkpoint(2, 1.7e9 + 2, "gs://bucket/ckpt-2", True),
        AttemptStop(1 << 40, 1.7e9 + 3, "failed"),
    )


def test_there_are_broken_chunks() -> None:
    assert len(BROKEN) == 16


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_broken_chunk_ends_in_its_error(path: Path) -> None:
    with pytest.raises(ChunkError) as refused:
        decode(path.read_bytes())
    assert type(refused.value).__name__ == path.stem.split("-")[0]


@pytest.mark.parametrize(
    ("name", "indices", "tails", "damages"),
    [
        ("whole", [0, 1, 2], 0, 0),
        ("torn", [0, 1], 1, 0),
        ("torn-header", [], 1, 0),
        ("rotten", [0, 2], 0, 1),
        ("zeros", [0], 1, 0),
        ("empty", [], 0, 0),
    ],
)
def test_a_segment_gives_its_whole_records(
    tmp_path: Path, name: str, indices: list[int], tails: int, damages: int
) -> None:
    folder = tmp_path / ATTEMPT
    folder.mkdir()
    shutil.copy(HERE / "journal_v1" / f"{name}.journal", folder / "00000001.journal")
    reader = AttemptReader(folder)
    found = []
    while (record := reader.next()) is not None:
        assert decode(record.chunk).id == identity(record.index)
        found.append(record.index)
        reader.acknowledge(record)
    assert found == indices
    assert (reader.cut.tails, reader.cut.damages) == (tails, damages)
    if name != "torn-header":
        assert reader.order == (3, 1.7e9)
    assert reader.remove_if_done()
    assert not folder.exists()
