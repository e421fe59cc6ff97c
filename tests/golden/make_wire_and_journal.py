"""Made the files in wire_v2/ and journal_v1/: `python tests/golden/make_wire_and_journal.py`.

Writes only what is not there: old bytes stay as an old version wrote them, those in wire_v1/ and the chunks in
journal_v1/ with chunk format 1. A new format version gets its own folder.
"""

import math
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import zstandard

from lossguard.journal.segment import SegmentHeader, pack_record
from lossguard.wire import stats_section
from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, Chunk, ChunkId, encode
from lossguard.wire.frame import Frames, Schema

HERE = Path(__file__).parent
ATTEMPT = "00112233445566778899aabbccddeeff"
SCHEMA = Schema(
    ("loss", "loss/click", "learning_rate"), ("shared/dense/kernel", "tower/é/bias"), ("gradient_norm", "update_norm")
)


def identity(index: int) -> ChunkId:
    return ChunkId("ads", "ranker 7, lr=0.1", ATTEMPT, index)


def frames() -> Frames:
    """Four steps with everything that numbers can be; `test_golden` knows them by heart."""
    return Frames(
        schema=SCHEMA,
        steps=np.array([1, 2, 3, 1 << 40]),
        times=np.array([1.7e9, 1.7e9 + 0.25, math.nan, 1.7e9 + 1]),
        scalars=np.array([[0.7, 0.1, 0.1], [math.nan, math.inf, -math.inf], [-0.0, 5e-324, 1.7e308], [0.3, 0.2, 0.1]]),
        stats=np.array(
            [
                [[1.0, 0.1], [2.0, 0.2]],
                [[math.nan, math.inf], [-math.inf, 3.4028235e38]],
                [[0.0, -0.0], [1e-38, 1e-45]],
                [[math.pi, math.e], [1 / 3, 65504.0]],
            ],
            np.float32,
        ),
        scalars_present=np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 1]], np.bool_),
        stats_present=np.array([[1, 1], [1, 1], [1, 1], [0, 1]], np.bool_),
    )


def whole() -> dict[str, bytes]:
    start = AttemptStart(0, 1.7e9, {"tasks": {"click": "binary"}, "clip": "Infinity"})
    events = (Checkpoint(2, 1.7e9 + 2, "gs://bucket/ckpt-2", True), AttemptStop(1 << 40, 1.7e9 + 3, "failed"))
    nothing = Frames.of(Schema(()), [], [])
    return {
        "start": encode(Chunk(identity(0), nothing, {}, (start,))),
        "rounded": encode(Chunk(identity(1), frames(), {"queue_full": 3, "disk_full": 1}), mantissa_bits=10),
        "lossless": encode(Chunk(identity(2), frames(), {}, events), mantissa_bits=23),
    }


def noise() -> Frames:
    """Stats that a sample calls noise, constant and slow, with a NaN and an infinity among them."""
    random = np.random.default_rng(5)
    stats = np.empty((32, 9, 4), np.float32)
    stats[:, :, 0], stats[:, :, 2] = random.lognormal(0, 2, (2, 32, 9))
    stats[:, :, 1], stats[:, :, 3] = 1.0, 2 + 1e-4 * np.arange(32)[:, None]
    stats[3, 4, 0], stats[5, 6, 2] = math.nan, -math.inf
    schema = Schema((), tuple(f"layer_{n}" for n in range(9)), ("gradient_norm", "one", "update_norm", "weight_norm"))
    return Frames.of(schema, range(100, 132), np.empty((32, 0)), stats)


def whole_2() -> dict[str, bytes]:
    """What format 2 has beside what `whole` has."""
    before, stats_section.NOISE_FROM = stats_section.NOISE_FROM, 256  # small files
    try:
        chunks = {bits: encode(Chunk(identity(3), noise()), mantissa_bits=bits) for bits in (6, 10, 23)}
    finally:
        stats_section.NOISE_FROM = before
    return {f"noise-{bits}": data for bits, data in chunks.items()}


def with_crc(data: bytes) -> bytes:
    return data[:4] + struct.pack("<I", zlib.crc32(data[8:])) + data[8:]


def broken(data: bytes) -> dict[str, bytes]:
    """By the error that they must end in."""
    bomb = zstandard.compress(bytes(1 << 24))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    return {
        "TruncatedChunk": data[:9],
        "TruncatedChunk-header": data[:40],
        "CorruptChunk-flipped": bytes(flipped),
        "CorruptChunk-cut": data[:-1],
        "CorruptChunk-longer": with_crc(data + b"\0"),
        "CorruptChunk-zeros": bytes(64),
        "UnsupportedVersion": data[:3] + b"\xff" + data[4:],
        "ChunkTooLarge-header": with_crc(
            b"LGC\x02" + bytes(4) + struct.pack("<III", 2, len(bomb), 1 << 24) + b"{}" + bomb
        ),
    }


def segments(chunks: dict[str, bytes]) -> dict[str, bytes]:
    header = SegmentHeader(order=3, started=1.7e9, first_index=0).pack()
    records = [pack_record(index, chunk) for index, chunk in enumerate(chunks.values())]
    rotten = bytearray(records[1])
    rotten[50] ^= 1
    return {
        "whole": header + b"".join(records),
        "torn": header + b"".join(records[:2]) + records[2][:100],
        "torn-header": header[:20],
        "rotten": header + records[0] + bytes(rotten) + records[2],
        "zeros": header + records[0] + bytes(4096),
        "empty": header,
    }


def main() -> None:
    chunks = whole()
    files = {HERE / "wire_v2" / f"{name}.chunk": data for name, data in (chunks | whole_2()).items()}
    files |= {HERE / "wire_v2" / "broken" / f"{name}.chunk": data for name, data in broken(chunks["rounded"]).items()}
    files |= {HERE / "journal_v1" / f"{name}.journal": data for name, data in segments(chunks).items()}
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(data)
            sys.stdout.write(f"made {path.relative_to(HERE)}\n")


if __name__ == "__main__":
    main()
