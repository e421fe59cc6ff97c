"""A few copies of weights and optimizer state in memory, so that a rollback needs no file.

Guarantees. Bounded: at most `keep` copies. A copy is made on the device between two executions, and brought to the host
by whoever calls `fetch`, off the training thread. `restore` writes all of a copy or, if the model has changed, nothing.
"""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from keras import ops

from lossguard.keras.backends import backend
from lossguard.wire.incident import BREAKING, Incident

MARGIN_STEPS = 2
"""The frame at which an episode begins shows the weights of the update before it, which may be the one that did it."""


class Snapshot:
    """Weights and optimizer state after `step` updates."""

    def __init__(self, step: int, variables: Sequence[Any]) -> None:
        self.step = step
        self._values = [backend.copy(variable) for variable in variables]

    def fetch(self) -> None:
        """Move the copy to the host; calling it again does nothing."""
        self._values = [ops.convert_to_numpy(value) for value in self._values]

    def restore(self, variables: Sequence[Any]) -> None:
        """Write the copy into the variables it was taken from.

        Raises:
            ValueError: these are other variables; nothing was written.
        """
        if [tuple(variable.shape) for variable in variables] != [tuple(value.shape) for value in self._values]:
            raise ValueError("the model or its optimizer was built anew since the snapshot was taken")
        for variable, value in zip(variables, self._values, strict=True):
            variable.assign(value)


class Snapshots:
    """The copies, oldest first. Any thread may call any method."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._kept: list[Snapshot] = []

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the copies."""
        with self._lock:
            return tuple(one.step for one in self._kept)

    def add(self, snapshot: Snapshot) -> None:
        """Keep a copy; the oldest one goes if there are too many."""
        with self._lock:
            self._kept = [*self._kept, snapshot][-self._keep :]

    def fetch(self) -> None:
        """Move new copies to the host."""
        with self._lock:
            kept = list(self._kept)
        for one in kept:
            one.fetch()

    def newest_good(self, incidents: Iterable[Incident]) -> Snapshot | None:
        """The newest copy that is older than the first sign of trouble and lies in no earlier episode."""
        episodes = [one for one in incidents if one.kind in (*BREAKING, "micro_divergence")]
        with self._lock:
            good = [one for one in self._kept if not any(_touches(episode, one.step) for episode in episodes)]
        return good[-1] if good else None

    def forget_after(self, step: int) -> None:
        """The run goes on from `step`: what came after is superseded."""
        with self._lock:
            self._kept = [one for one in self._kept if one.step <= step]


def _touches(episode: Incident, step: int) -> bool:
    signal = episode.onset_step if episode.first_signal_step is None else episode.first_signal_step
    first = min(signal, episode.onset_step)
    return step > first - MARGIN_STEPS and (episode.end_step is None or step < episode.end_step)
