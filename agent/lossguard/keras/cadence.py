"""When a step is measured in full: decided on the device, from nothing but the row before.

Guarantees. Every `every`-th step is full. A step in which a layer's gradient norm is not finite is always full, itself
included. A step in which one exceeds four times its own smoothed level begins 64 full ones; then
192 steps must pass before another jump counts, so that a run that spikes all the time costs at most a quarter of the
full price on top. Both stretch with what the budget says (`lossguard.keras.budget`): twice as rarely, half as long.

The state rides in the ring's rows: [step, full, armed, level of each layer]. `armed` counts the full steps that are
left when positive, the refractory ones when negative. Behind a step that wrote no row (`lossguard.keras.ring`) it is
what the ring held there, so that a burst may end early.
"""

from typing import Any, Final, NamedTuple

from keras import ops

from lossguard.keras.backends import backend

JUMP: Final = 4.0
STAY: Final = 64.0
REFRACTORY: Final = 192.0
SMOOTHING: Final = 0.1


class State(NamedTuple):
    """What a row carries on.

    Attributes:
        full: scalar 1.0 if this step is measured in full, else 0.0.
        armed: scalar, see above.
        levels: [L] smoothed gradient norms; 0 until the first.
    """

    full: Any
    armed: Any
    levels: Any

    @classmethod
    def of(cls, row: Any) -> "State":
        """From the state's columns of a row."""
        return cls(row[1], row[2], row[3:])

    def columns(self, step: Any) -> Any:
        """For the row of a step, a float32 scalar."""
        return ops.concatenate([ops.stack([step, self.full, self.armed]), self.levels], 0)


def advance(before: State, gradient_norms: Any, position: Any, every: int, stretch: Any) -> State:
    """The state of this step.

    Args:
        before: of the last step; zeros at the first.
        gradient_norms: [L] of this step.
        position: updates before this one, int64.
        every: the cadence, 1 or more.
        stretch: scalar power of two up to 16, by how much the cadence is longer and a burst shorter.
    """
    finite = ops.isfinite(gradient_norms)
    broken = ops.any(ops.logical_not(finite))
    known = before.levels > 0
    jump = ops.any(known & finite & (gradient_norms > JUMP * before.levels))
    # A jump enters the level only up to the bound, so that one spike does not hide the next.
    bounded = ops.where(known, ops.minimum(gradient_norms, JUMP * before.levels), gradient_norms)
    moved = ops.where(known, before.levels + SMOOTHING * (bounded - before.levels), bounded)
    levels = ops.where(finite, moved, before.levels)
    counted = ops.where(before.armed == 1.0, -REFRACTORY, before.armed - ops.sign(before.armed))
    armed = ops.where((before.armed == 0.0) & jump, STAY / stretch, counted)
    due = position % ops.cast(every * stretch, backend.WHOLE) == 0
    full = due | broken | (armed > 0.0)
    return State(ops.cast(full, "float32"), armed, levels)
