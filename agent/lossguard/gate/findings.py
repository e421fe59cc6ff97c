"""What a scan of an artifact found, and how a non-finite number is recognized.

Guarantees. A scan is `complete` until somebody says that a part could not be read, and never becomes complete again.
Tensors of the optimizer (its slots, and the averages that it keeps of the weights) are told apart by their names: no
server computes with them, and whoever trains on from the artifact does.
"""

import os
import re
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lossguard.gate.artifact import Kind

BLOCK_BYTES: Final = 4 << 20
MAX_NAMED: Final = 50
"""So many tensors are named; the rest are counted under one name."""
_SLOT: Final = re.compile(
    r"(^|[/.])(\.OPTIMIZER_SLOT|optimizers?|optimizer_(state|variables)|opt_states?|ema|ema_\w+)([/.]|$)"
)
"""A part of a tensor's path that says so, as Keras, TensorFlow, Flax and Optax write it."""


@dataclass(slots=True)
class Scan:
    """What was found.

    Attributes:
        kind: what the artifact is.
        tensors: tensors of floats that were read to the end.
        values: the numbers in them.
        nonfinite: tensors with NaN or Inf in them, and how many entries each; the optimizer's are not among them.
        slots: those of the tensors that are the optimizer's.
        nonfinite_slots: the same as `nonfinite`, of the optimizer's tensors.
        complete: False if a part could not be read.
        note: why.
    """

    kind: Kind
    tensors: int = 0
    values: int = 0
    nonfinite: dict[str, int] = field(default_factory=dict)
    slots: int = 0
    nonfinite_slots: dict[str, int] = field(default_factory=dict)
    complete: bool = True
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the service wants it."""
        return {
            "kind": self.kind, "tensors": self.tensors, "values": self.values, "nonfinite": dict(self.nonfinite),
            "slots": self.slots, "nonfinite_slots": dict(self.nonfinite_slots), "complete": self.complete,
            "note": self.note,
        }  # fmt: skip

    def found(self, name: str, values: int, bad: int) -> None:
        """One more tensor, read to its end."""
        slot = is_slot(name)
        self.tensors += 1
        self.slots += slot
        self.values += values
        if bad:
            named = self.nonfinite_slots if slot else self.nonfinite
            key = name[:500] if len(named) < MAX_NAMED else "(more)"
            named[key] = named.get(key, 0) + bad

    def incomplete(self, note: str) -> None:
        """A part could not be read; the first reason is kept."""
        self.complete = False
        self.note = self.note or note


def usable_cpus() -> int:
    """How many CPUs this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_slot(name: str) -> bool:
    """True if a tensor of this path belongs to the optimizer.

    >>> [is_slot(name) for name in ("optimizer/vars/3", "opt_state.0.mu", "layers/dense/vars/0", "shared/demand")]
    [True, True, False, False]
    """
    return _SLOT.search(name) is not None


def count_nonfinite(values: NDArray[Any]) -> int:
    """How many entries are NaN or Inf.

    >>> count_nonfinite(np.array([1.0, np.nan, np.inf]))
    2
    """
    if values.dtype.itemsize >= 4:
        # NaN and Inf survive a sum, so a finite one clears the block at the speed of memory; else count exactly.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.add.reduce(values, axis=None)):
                return 0
    return int(values.size - np.count_nonzero(np.isfinite(values)))
