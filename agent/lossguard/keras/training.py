"""The training that is watched: its model, its optimizers with their hooks, and the state that they share.

Guarantees. The optimizers stay the objects they were (decision 0201); `let_go` leaves nothing of ours in them.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import keras

from lossguard.keras.backends import backend
from lossguard.keras.coverage import Coverage, cover
from lossguard.keras.describe import describe
from lossguard.keras.distribution import refuse
from lossguard.keras.merge import leave_rows, merge_rows
from lossguard.keras.optimizer import Hook, hook_of, leaves
from lossguard.keras.saving import hear_no_more, hear_of_saves
from lossguard.keras.scalars import StepScalars
from lossguard.keras.treatments.base import StepTreatment, Treatment

_log = logging.getLogger("lossguard")


class Training:
    """One training, in `fit` or in a loop of one's own.

    Args:
        scalars: of its steps.
        treatments: of its updates.
        full_every, unwatched: of every hook.
        dedupe_sparse: whether equal rows of a sparse gradient are added up before the optimizer sees them.
        acts: whether it will be stopped or rolled back by itself.
        fetch_steps: how many steps at most lie between two fetches.

    Attributes:
        model: None in a loop of one's own.
        hooks: one for each optimizer that updates variables itself; the list stays the same object.
        saved: called when an optimizer is about to be saved, on the thread that saves.

    Raises:
        ValueError: `dedupe_sparse` is neither True nor False.
    """

    def __init__(
        self,
        scalars: StepScalars,
        treatments: Sequence[Treatment],
        *,
        full_every: int,
        unwatched: Sequence[str],
        dedupe_sparse: bool,
        acts: bool,
        fetch_steps: int,
    ) -> None:
        self.model: keras.Model | None = None
        self.hooks: list[Hook] = []
        self._scalars = scalars
        self._treatments = tuple(treatments)
        self._full_every = full_every
        self._unwatched = unwatched
        if not isinstance(dedupe_sparse, bool):
            raise ValueError(f"dedupe_sparse: must be True or False, got {dedupe_sparse!r}")
        self._dedupe_sparse = dedupe_sparse
        self._acts = acts
        self._fetch_steps = fetch_steps
        self._optimizer: Any = None
        self._loop_state: Sequence[Any] | None = None
        self._keeps_state = False
        self.saved: Callable[[], None] = lambda: None

    @property
    def optimizers(self) -> list[Any]:
        """Those that are hooked."""
        return [hook.optimizer for hook in self.hooks]

    def wrap(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Hook an optimizer, and what it wraps; what is hooked already stays so.

        Raises:
            ValueError: not a Keras optimizer, or one that another Watch watches.
        """
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise ValueError(f"optimizer: must be a Keras optimizer, got {type(optimizer).__name__}")
        self._optimizer = optimizer
        for leaf in leaves(optimizer):
            if getattr(leaf, "optimizers", None) == []:
                continue
            if known := next((hook for hook in self.hooks if hook.optimizer is leaf), None):
                known.cover(optimizer)
                continue
            if (other := hook_of(leaf)) is not None:
                if not other.resting:
                    raise ValueError(f"optimizer: {leaf.name} is watched by another Watch; detach() that one first")
                # A notebook's cell that is run again makes a new Watch, and nobody can reach the old one.
                other.let_go()
            refuse(leaf, acts=self._acts)
            first = not self.hooks
            whole = next((one for one in self._treatments if isinstance(one, StepTreatment)), None)
            if whole is not None and not first:
                raise ValueError(
                    f"treatment: {type(whole).__name__} looks at the whole step, of which each of several optimizers "
                    "sees a part; give it to a training with one optimizer"
                )
            hook = Hook(
                leaf,
                self._treatments,
                self._scalars.of_step if first else _learning_rate_of(leaf.name),
                rows=_ring_rows(self._fetch_steps),
                full_every=self._full_every,
                unwatched=self._unwatched,
                carried=self._carried if first else tuple,
            )
            hook.let_go = self.let_go
            hear_of_saves(leaf, lambda: self.saved())
            hook.cover(optimizer)
            self.hooks.append(hook)
            if self._dedupe_sparse:
                merge_rows(leaf)
                _log.info("Lossguard: dedupe_sparse merges rows: %s trains by other numbers than bare Keras", leaf.name)

    def wrap_model(self, model: keras.Model) -> bool:
        """Hook a compiled model's optimizer; True if it was not hooked before.

        Raises:
            ValueError: see `wrap`, and `lossguard.keras.distribution.refuse`.
        """
        if not any(hook.optimizer in leaves(model.optimizer) for hook in self.hooks):
            self.let_go()
        self.model = model
        for leaf in leaves(model.optimizer):
            refuse(leaf, model, acts=self._acts)
        known = len(self.hooks)
        self.wrap(model.optimizer)
        rows = _ring_rows(max(self._fetch_steps, int(model.steps_per_execution)))
        for hook in self.hooks:
            hook.rows = rows if hook.ring is None else hook.rows
            hook.plain = not model.jit_compile
        return len(self.hooks) > known

    def coverage(self) -> Coverage:
        """Which weights are measured, and why the others are not."""
        return cover(self.model, self.optimizers, self._treatments, self._unwatched)

    def describe(self) -> dict[str, Any]:
        """For the attempt's config, JSON-like."""
        trainable = [] if self.model is None else self.model.trainable_variables
        return {
            "tasks": self._scalars.kinds,
            "full_every": self._full_every,
            "dedupe_sparse": self._dedupe_sparse,
            "treatment": [treatment.describe() for treatment in self._treatments],
            **describe(self.optimizers, trainable, self._unwatched),
            "layers_unwatched": sorted(self.coverage().unwatched),
        }

    def let_go(self) -> None:
        """Give the bare optimizers, and the model's loss, back."""
        if self.model is not None:
            self._scalars.detach(self.model)
        for hook in self.hooks:
            hook.detach()
            leave_rows(hook.optimizer)
            hear_no_more(hook.optimizer)
        self.hooks.clear()
        self._scalars.forget_skips()

    def rest(self, resting: bool) -> None:
        """Whether another watch may take the optimizers."""
        for hook in self.hooks:
            hook.resting = resting

    def prepare(self) -> None:
        """Make what must be there before the next step is compiled."""
        if self.hooks:
            self.hooks[0].most_scalars = self._scalars.most
        for hook in self.hooks:
            hook.prepare()

    def _carried(self) -> Sequence[Any]:
        of_treatments = [variable for one in self._treatments for variable in getattr(one, "variables", ())]
        return (*of_treatments, *self._scalars.variables)

    # --- its state, between two executions

    @property
    def holds_weights(self) -> bool:
        """Whether variables, once synced, have the weights of the last step.

        A loop of one's own on JAX keeps them to itself, and Keras puts averages in their place, where it has them.
        """
        return not self._keeps_state and not any(optimizer.use_ema for optimizer in self.optimizers)

    def returned(self, optimizer_variables: Sequence[Any] | None) -> None:
        """What the step of a loop of one's own gave back on JAX, to be adopted when it is needed."""
        self._loop_state = optimizer_variables
        self._keeps_state = optimizer_variables is not None

    def sync(self) -> None:
        """Let variables have the values of the last step; on JAX the trainer, or the loop, keeps them to itself."""
        backend.sync(self.model)
        if self._loop_state is not None:
            backend.adopt(self._optimizer, self._loop_state)
            self._loop_state = None

    def updates(self) -> int:
        """Updates so far. Copies one integer from the device."""
        self.sync()
        return self.hooks[0].step

    def state(self) -> list[Any]:
        """Weights and optimizer state; nothing before the optimizer is built."""
        self.sync()
        optimizers = self.optimizers
        if self.model is not None:
            optimizers.append(self.model.optimizer)
        if not all(optimizer.built for optimizer in optimizers):
            return []
        weights = [] if self.model is None else self.model.weights
        trained = [variable for hook in self.hooks for variable in hook.optimizer._trainable_variables]
        slots = [variable for optimizer in optimizers for variable in backend.variables(optimizer)]
        return list({id(variable): variable for variable in (*weights, *trained, *slots)}.values())


def _learning_rate_of(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda learning_rate: {f"learning_rate/{name}": learning_rate}


def _ring_rows(steps: int) -> int:
    """Four fetches long, as a power of two: one fetch may come late without a gap."""
    return max(256, 1 << (4 * steps - 1).bit_length())
