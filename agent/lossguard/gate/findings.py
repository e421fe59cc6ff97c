"""What a scan of an artifact found, and what one look at its numbers tells: are they finite, and what is their norm?

Guarantees. A scan is `complete` until somebody says that a part could not be read, and never becomes complete again.
Tensors of the optimizer (its slots, and the averages that it keeps of the weights) are told apart by their names: no
server computes with them, and whoever trains on from the artifact does. A norm is an L2 norm, summed in float64 over
pieces of `PIECE` numbers; the service compares the norms with those that the training reported.
"""

import math
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
MAX_NORMS: Final = 4_000
"""Tensors whose norms are told; of more, none is, as half of them would look like another model."""
PIECE: Final = 8_192
"""Squares are summed in their own precision over so many numbers: 1e-5 at worst, and the speed of memory."""
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
        norms: of the finite tensors that are not the optimizer's, by name: the norm, how many numbers, and how many
            bits each; see `MAX_NORMS`. Types without a norm (complex, 8 bits) are not among them.
        complete: False if a part could not be read.
        note: why.
    """

    kind: Kind
    tensors: int = 0
    values: int = 0
    nonfinite: dict[str, int] = field(default_factory=dict)
    slots: int = 0
    nonfinite_slots: dict[str, int] = field(default_factory=dict)
    norms: dict[str, tuple[float, int, int]] = field(default_factory=dict)
    complete: bool = True
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the service wants it."""
        return {
            "kind": self.kind, "tensors": self.tensors, "values": self.values, "nonfinite": dict(self.nonfinite),
            "slots": self.slots, "nonfinite_slots": dict(self.nonfinite_slots), "complete": self.complete,
            "note": self.note,
            "norms": {name: {"norm": norm, "values": values, "bits": bits}
                      for name, (norm, values, bits) in self.norms.items()} if len(self.norms) <= MAX_NORMS else {},
        }  # fmt: skip

    def found(self, name: str, values: int, bad: int, squares: float = math.nan, bits: int = 32) -> None:
        """One more tensor, read to its end; `squares` is the sum of its squares, NaN if it is not known."""
        slot = is_slot(name)
        self.tensors += 1
        self.slots += slot
        self.values += values
        if bad:
            named = self.nonfinite_slots if slot else self.nonfinite
            key = name[:500] if len(named) < MAX_NAMED else "(more)"
            named[key] = named.get(key, 0) + bad
        elif not slot and math.isfinite(squares) and len(self.norms) <= MAX_NORMS:
            self.norms[name[-200:]] = (math.sqrt(squares), values, min(bits, 64))

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


def look(values: NDArray[Any]) -> tuple[int, float]:
    """How many entries are NaN or Inf, and the sum of all squares; NaN if there are any, or for complex numbers.

    >>> look(np.array([3.0, 4.0])), look(np.array([1.0, np.nan, np.inf]))
    ((0, 25.0), (2, nan))
    """
    flat = values.reshape(-1)
    if flat.dtype.kind == "c":
        return int(flat.size - np.count_nonzero(np.isfinite(flat))), math.nan
    if flat.dtype.itemsize < 4:
        flat = flat.astype(np.float32)
    # NaN and Inf survive a sum of squares, so a finite one clears the block at the speed of memory; else count exactly.
    with np.errstate(over="ignore", invalid="ignore"):
        squares = _squares(flat)
        if math.isfinite(squares):
            return 0, squares
        bad = int(flat.size - np.count_nonzero(np.isfinite(flat)))
        return bad, math.nan if bad else float(np.square(flat, dtype=np.float64).sum())


def look_bfloat16(bits: NDArray[np.uint16]) -> tuple[int, float]:
    """The same of bfloat16, which NumPy does not know: the upper halves of float32."""
    return look((bits.reshape(-1).astype(np.uint32) << 16).view(np.float32))


def _squares(flat: NDArray[Any]) -> float:
    whole = flat.size - flat.size % PIECE
    pieces, rest = flat[:whole].reshape(-1, PIECE), flat[whole:]
    dots = np.vecdot(pieces, pieces) if hasattr(np, "vecdot") else np.einsum("ij,ij->i", pieces, pieces)
    return float(dots.sum(dtype=np.float64)) + float(np.dot(rest, rest))
