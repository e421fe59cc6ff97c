"""Hypothesis strategies for chunks, and the tools to break them."""

import json
import struct
import zlib
from typing import Any

import numpy as np
import zstandard
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lossguard.drops import REASONS
from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, Chunk, ChunkId
from lossguard.wire.frame import Frames, Schema

NAMES = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20)
RUN_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 ._=,-]{0,20}[A-Za-z0-9]", fullmatch=True)
STEP = st.integers(1, 1 << 40)
TIME = st.floats(0, 2e9)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 53) + 1, (1 << 53) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
EVENTS = st.one_of(
    st.builds(AttemptStart, st.integers(0, 1 << 40), TIME, st.dictionaries(NAMES, JSON, max_size=3)),
    st.builds(AttemptStop, STEP, TIME, st.sampled_from(["finished", "interrupted", "failed"]), st.integers(0, 9)),
    st.builds(Checkpoint, STEP, TIME, NAMES, st.booleans()),
)


@st.composite
def frame_blocks(draw: st.DrawFn) -> Frames:
    count = draw(st.integers(0, 12))
    columns = [tuple(draw(st.lists(NAMES, max_size=4, unique=True))) for _ in range(3)]
    schema = Schema(*columns)
    s, n_layers, k = (len(column) for column in columns)
    steps = np.cumsum(draw(npst.arrays(np.int64, count, elements=st.integers(1, 1000))), dtype=np.int64)
    return Frames(
        schema=schema,
        steps=steps,
        times=draw(npst.arrays(np.float64, count)),
        scalars=draw(npst.arrays(np.float64, (count, s))),
        stats=draw(npst.arrays(np.float32, (count, n_layers, k), elements=st.floats(width=32))),
        scalars_present=draw(npst.arrays(np.bool_, (count, s))),
        stats_present=draw(npst.arrays(np.bool_, (count, k))),
    )


CHUNKS = st.builds(
    Chunk,
    st.builds(ChunkId, RUN_NAMES, RUN_NAMES, st.from_regex(r"[0-9a-f]{32}", fullmatch=True), st.integers(0, 1 << 40)),
    frame_blocks(),
    st.dictionaries(st.sampled_from(REASONS), st.integers(1, 1 << 40), max_size=3),
    st.lists(EVENTS, max_size=4).map(tuple),
)


def with_valid_crc(data: bytes) -> bytes:
    """The same bytes with the checksum that they ought to have."""
    return data[:4] + struct.pack("<I", zlib.crc32(data[8:])) + data[8:] if len(data) >= 8 else data


def parts_of(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, schema and sections of a chunk of version 2."""
    plain, packed, _ = struct.unpack_from("<III", data, 8)
    schema = zstandard.decompress(data[20 + plain : 20 + plain + packed])
    return json.loads(data[20 : 20 + plain]), json.loads(schema), data[20 + plain + packed :]


def of_parts(header: bytes, schema: bytes, sections: bytes = b"") -> bytes:
    """A chunk of version 2 with a valid checksum."""
    names = zstandard.compress(schema)
    sizes = struct.pack("<III", len(header), len(names), len(schema))
    return with_valid_crc(b"LGC\x02" + bytes(4) + sizes + header + names + sections)


def as_version_1(data: bytes) -> bytes:
    """The chunk with the head that version 1 had; what stands in the sections is as it was."""
    header, schema, sections = parts_of(data)
    plain = json.dumps(header | {"schema": schema}).encode()
    packed = zstandard.compress(plain)
    return with_valid_crc(b"LGC\x01" + bytes(4) + struct.pack("<II", len(packed), len(plain)) + packed + sections)


def with_header(data: bytes, **changes: object) -> bytes:
    """The chunk with keys of its header, or its schema, replaced (None removes one) and a valid checksum."""
    header, schema, sections = parts_of(data)
    names = changes.pop("schema", schema)
    header = {key: value for key, value in (header | changes).items() if value is not None}
    return of_parts(json.dumps(header).encode(), json.dumps(names).encode(), sections)
