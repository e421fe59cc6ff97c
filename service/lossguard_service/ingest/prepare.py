"""A chunk's bytes into what the store needs, before any lock is taken: decoded and checked. Pure.

This is the CPU-heavy part of ingest; it may run in any thread.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np

from lossguard.wire import chunk as wire
from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, Chunk, ChunkError, ChunkId, UnsupportedVersion
from lossguard.wire.frame import Frames
from lossguard.wire.numbers import to_json_number
from lossguard_service.errors import NewerVersion, UnreadableChunk, WrongIdentity

TOP_LAYERS: Final = 5
SUMMARY_SCALARS: Final = 64
MISSING_RANGES: Final = 256
_E = TypeVar("_E", AttemptStart, AttemptStop, Checkpoint)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A chunk, ready to be stored.

    Attributes:
        chunk: decoded.
        data: the bytes as they came.
        sha256: of the bytes, in hex.
        missing: [first, last] of each stretch of steps without a frame inside.
        digest: the run's summary as of the last frame; None without frames.
        first_step, last_step: of the frames; None without frames.
    """

    chunk: Chunk
    data: bytes
    sha256: str
    missing: list[list[int]]
    digest: dict[str, Any] | None
    first_step: int | None
    last_step: int | None

    def events(self, kind: type[_E]) -> list[_E]:
        """The chunk's events of one kind, in order."""
        return [event for event in self.chunk.events if isinstance(event, kind)]


def prepare(identity: ChunkId, data: bytes) -> Prepared:
    """Decode and check a chunk that was sent to `identity`.

    Raises:
        NewerVersion: an agent of a later version wrote the chunk.
        UnreadableChunk: the bytes are not a chunk that we can read, or hold what no trainer could have measured.
        WrongIdentity: it is another chunk.
    """
    try:
        chunk = wire.decode(data)
    except UnsupportedVersion as error:
        # Not for ever: it waits in the trainer's journal for the replica that reads it.
        raise NewerVersion(f"{error}; update the service before its agents; nothing was stored") from None
    except ChunkError as error:
        raise UnreadableChunk(str(error)) from None
    if chunk.id != identity:
        raise WrongIdentity(f"the bytes are chunk {_name(chunk.id)}, the address is that of chunk {_name(identity)}")
    frames = chunk.frames
    first, last = (int(frames.steps[0]), int(frames.steps[-1])) if len(frames) else (None, None)
    if first is not None and last is not None and not (first >= 1 and last < 1 << 53):
        raise UnreadableChunk(f"steps count from 1 and stay below 2^53, got {first} to {last}")
    return Prepared(
        chunk=chunk,
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        missing=_missing(frames),
        digest=digest(frames) if len(frames) else None,
        first_step=first,
        last_step=last,
    )


def _missing(frames: Frames) -> list[list[int]]:
    steps = frames.steps
    if len(steps) < 2 or int(steps[-1] - steps[0]) == len(steps) - 1:
        return []
    places = np.flatnonzero(np.diff(steps) > 1)
    ranges = [[int(steps[place]) + 1, int(steps[place + 1]) - 1] for place in places[:MISSING_RANGES]]
    if len(places) > MISSING_RANGES:
        # Too many to list: the last one spans the rest, which errs on the side of saying that more is missing.
        ranges[-1][1] = int(steps[places[-1] + 1]) - 1
    return ranges


def digest(frames: Frames) -> dict[str, Any]:
    """A run's `summary` (`lossguard_service.store.runs.Run`) as of the last of these frames."""
    scalars = {}
    last, has_last = frames.scalars[-1].tolist(), frames.scalars_present[-1].tolist()
    for column, name in enumerate(frames.schema.scalars[:SUMMARY_SCALARS]):
        if has_last[column]:
            scalars[name] = to_json_number(last[column])
            continue
        present = np.flatnonzero(frames.scalars_present[:, column])
        if len(present):
            scalars[name] = to_json_number(frames.scalars[present[-1], column])
    document: dict[str, Any] = {
        "scalars": scalars,
        "time": to_json_number(frames.times[-1]),
        "steps_per_second": None,
        "clippy_ratio_max": None,
        "top_layers": [],
    }
    seconds = float(frames.times[-1] - frames.times[0])
    if math.isfinite(seconds) and seconds > 0:
        document["steps_per_second"] = int(frames.steps[-1] - frames.steps[0]) / seconds
    if "clippy_ratio" in frames.schema.stats and frames.schema.layers:
        k = frames.schema.stats.index("clippy_ratio")
        here = frames.stats_present[:, k]
        measured = frames.stats[:, :, k] if here.all() else frames.stats[here, :, k]
        if len(measured):
            # `maximum` finds out whether there is a NaN, which `fmax`, at three times the cost, would pass over.
            worst = ranked = np.maximum.reduce(measured, axis=0)
            if np.isnan(worst).any():
                worst = np.fmax.reduce(measured, axis=0)
                ranked = np.where(np.isnan(worst), np.inf, worst)
            order = np.argsort(-ranked, kind="stable")[:TOP_LAYERS].tolist()
            document["top_layers"] = [[frames.schema.layers[i], to_json_number(worst[i])] for i in order]
            document["clippy_ratio_max"] = to_json_number(worst[order[0]])
    return document


def _name(identity: ChunkId) -> str:
    return f"{identity.index} of attempt {identity.attempt[:8]} of {identity.project}/{identity.run}"
