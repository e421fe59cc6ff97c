"""Scalars that are measured beside the compiled step, put into the frames of their steps.

Guarantees. A step without such a value has it absent, which is not NaN; the columns stand in every frame, so that a
value now and then begins no new chunk. Nothing waits: what comes after its frame was recorded is left out.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lossguard.keras.fetch import Sink
from lossguard.wire.chunk import AttemptEnd, Event
from lossguard.wire.frame import Frames, Schema

Judge = Callable[[Frames], Mapping[str, float]]
"""From new frames to scalars of the last of them."""


class Beside:
    """A sink that adds scalars to what another one records.

    Args:
        sink: where frames go.
        names: the scalars that may come.
        judges: asked about every block, on the thread that records.
    """

    def __init__(self, sink: Sink, names: Sequence[str], judges: Sequence[Judge] = ()) -> None:
        self._sink = sink
        self._names = tuple(names)
        self._judges = tuple(judges)
        self._waiting: dict[int, dict[str, float]] = {}
        self._lock = threading.Lock()

    def put(self, step: int, values: Mapping[str, float]) -> None:
        """Say a step's values, before its frame is fetched.

        Args:
            step: which.
            values: by name, all of them among `names`.
        """
        with self._lock:
            self._waiting.setdefault(step, {}).update(values)

    def record(self, frames: Frames) -> bool:
        """Record frames with their values; False if some were dropped and counted."""
        if not len(frames):
            return self._sink.record(frames)
        last = int(frames.steps[-1])
        for judge in self._judges:
            if said := judge(frames):
                self.put(last, said)
        if not self._names:
            return self._sink.record(frames)
        with self._lock:
            found = {step: self._waiting.pop(step) for step in sorted(self._waiting) if step <= last}
        values = np.full((len(frames), len(self._names)), np.nan)
        present = np.zeros(values.shape, np.bool_)
        for step, named in found.items():
            rows = frames.steps == step
            for name, value in named.items():
                values[rows, self._names.index(name)] = value
                present[rows, self._names.index(name)] = True
        schema = frames.schema
        return self._sink.record(
            replace(
                frames,
                schema=Schema((*schema.scalars, *self._names), schema.layers, schema.stats),
                scalars=np.concatenate([frames.scalars, values], 1),
                scalars_present=np.concatenate([frames.scalars_present, present], 1),
            )
        )

    def event(self, event: Event) -> bool:
        """Take an event; False after the end."""
        return self._sink.event(event)

    def drop(self, reason: str, count: int) -> None:
        """Count frames that were lost on the way here."""
        self._sink.drop(reason, count)

    def seal(self) -> None:
        """Let what was taken so far come to disk soon."""
        self._sink.seal()

    def close(self, reason: AttemptEnd = "finished", timeout_seconds: float = 30.0, *, skipped_steps: int = 0) -> None:
        """End the attempt."""
        self._sink.close(reason, timeout_seconds, skipped_steps=skipped_steps)
