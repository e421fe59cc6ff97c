"""The sealer, whatever is handed to it and whatever the disk does in between."""

import errno

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lossguard import drops
from lossguard.journal.sealer import MAX_CHUNK_ARRAY_BYTES, Sealer, frame_bytes
from lossguard.journal.writer import JournalFull
from lossguard.wire.chunk import Checkpoint, Chunk, ChunkId, Event, decode
from lossguard.wire.frame import Frames, Schema

ID = ChunkId("p", "r", "0" * 32, 0)
SCHEMAS = (Schema(("loss",)), Schema(("loss",), ("a",), ("g",)), Schema(("loss", "auc"), ("a", "b"), ("g",)))


class Memory:
    """A journal in memory that refuses as told."""

    def __init__(self) -> None:
        self.next_index = 0
        self.chunks: list[Chunk] = []
        self.refusals: list[Exception | None] = []

    def append(self, chunk: bytes) -> int:
        refusal = self.refusals.pop() if self.refusals else None
        if refusal is not None:
            raise refusal
        self.chunks.append(decode(chunk))
        self.next_index += 1
        return self.next_index - 1


def block(first: int, count: int, schema: Schema) -> Frames:
    steps = np.arange(first, first + count)
    shape = (count, len(schema.layers), len(schema.stats))
    return Frames.of(schema, steps, np.zeros((count, len(schema.scalars))), np.ones(shape, np.float32))


REFUSALS = st.sampled_from([OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken"), JournalFull("bound"), None])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("frames"), st.integers(1, 40), st.sampled_from(SCHEMAS)),
        st.tuples(st.just("event")),
        st.tuples(st.just("drop"), st.integers(1, 5)),
        st.tuples(st.just("seal"), st.booleans(), st.lists(REFUSALS, max_size=3)),
    ),
    max_size=30,
)


@given(ACTIONS, st.integers(1, 20))
def test_frames_and_events_are_sealed_once_and_in_order(actions: list[tuple], seal_frames: int) -> None:
    journal, counts = Memory(), drops.DropCounts()
    sealer = Sealer(ID, lambda: journal, counts, seal_frames=seal_frames, mantissa_bits=23)
    given_: list[int | Event] = []
    schemas: dict[int, Schema] = {}
    step = dropped = 0
    for kind, *rest in actions:
        if kind == "frames":
            sealer.add(block(step + 1, rest[0], rest[1]))
            given_ += range(step + 1, step + rest[0] + 1)
            schemas |= dict.fromkeys(range(step + 1, step + rest[0] + 1), rest[1])
            step += rest[0]
        elif kind == "event":
            event = Checkpoint(step, 1.0, f"ckpt-{len(given_)}", True)
            sealer.add(event)
            given_.append(event)
        elif kind == "drop":
            counts.add(drops.QUEUE_FULL, rest[0])
            dropped += rest[0]
        else:
            journal.refusals = list(rest[1])
            if not sealer.seal(flush=rest[0]):
                assert sealer.refusal in drops.REASONS
            journal.refusals = []
    counts.add(drops.QUEUE_FULL, 1)
    sealer.add(Checkpoint(step, 1.0, "last", True))
    assert sealer.seal(flush=True)
    assert not sealer.waiting
    assert sealer.waiting_bytes == 0
    found: list[int | Event] = []
    for index, chunk in enumerate(journal.chunks):
        assert chunk.id.index == index
        assert len(chunk.frames) <= seal_frames
        assert all(schemas[int(s)] == chunk.frames.schema for s in chunk.frames.steps)
        found += [int(s) for s in chunk.frames.steps]
        found += chunk.events
    assert found[:-1] == given_
    assert sum(sum(chunk.drops.values()) for chunk in journal.chunks) == dropped + 1
    assert sealer.frames_sealed == step


def test_large_frames_make_small_chunks() -> None:
    journal = Memory()
    schema = Schema((), tuple(map(str, range(1000))), tuple(map(str, range(9))))
    sealer = Sealer(ID, lambda: journal, drops.DropCounts(), seal_frames=10_000, mantissa_bits=10)
    sealer.add(block(1, 500, schema))
    assert sealer.seal(flush=True)
    assert sum(len(chunk.frames) for chunk in journal.chunks) == 500
    assert all(frame_bytes(chunk.frames) <= MAX_CHUNK_ARRAY_BYTES for chunk in journal.chunks)
    assert len(journal.chunks) == 3


def test_many_events_are_several_chunks() -> None:
    journal = Memory()
    sealer = Sealer(ID, lambda: journal, drops.DropCounts(), seal_frames=10, mantissa_bits=10)
    events = [Checkpoint(step, 1.0, "é" * 4096, True) for step in range(1, 101)]
    for event in events:
        sealer.add(event)
    assert sealer.seal(flush=False)
    assert [event for chunk in journal.chunks for event in chunk.events] == events


def test_what_is_abandoned_is_counted_under_the_disks_reason() -> None:
    journal, counts = Memory(), drops.DropCounts()
    sealer = Sealer(ID, lambda: journal, counts, seal_frames=10, mantissa_bits=10)
    sealer.add(block(1, 25, SCHEMAS[0]))
    journal.refusals = [JournalFull("bound"), None]
    assert not sealer.seal(flush=True)
    assert sealer.abandon() == 15
    assert counts.total() == {"journal_full": 15}
    assert not sealer.waiting
