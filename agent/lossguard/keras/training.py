"""The training that is watched: its model, its optimizers with their hooks, and the state that they share.

Guarantees. The optimizers stay the objects they were (decision 0201); `let_go` leaves nothing of ours in them.
"""

import functools
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
        self._idle: set[str] = set()
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
        whole = _without_scaling(optimizer)
        for leaf in leaves(optimizer):
            if getattr(leaf, "optimizers", None) == []:
                continue
            if _is_idle(leaf, whole):
                self._say_idle(leaf)
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
            of_steps = next((one for one in self._treatments if isinstance(one, StepTreatment)), None)
            if of_steps is not None and not first:
                raise ValueError(
                    f"treatment: {type(of_steps).__name__} looks at the whole step, of which each of several "
                    "optimizers sees a part; give it to a training with one optimizer"
                )
            hook = Hook(
                leaf,
                self._treatments,
                functools.partial(self._scalars_with, leaf),
                rows=_ring_rows(self._fetch_steps),
                full_every=self._full_every,
                unwatched=self._unwatched,
                carried=functools.partial(self._carried_with, leaf),
            )
            hook.whole = whole
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
        coverage = self.coverage()
        return {
            "tasks": self._scalars.kinds,
            "full_every": self._full_every,
            "dedupe_sparse": self._dedupe_sparse,
            "treatment": [treatment.describe() for treatment in self._treatments],
            **describe(self.optimizers[0], coverage),
        }

    def let_go(self) -> None:
        """Give the bare optimizers, and the model's loss, back."""
        if self.model is not None:
            self._scalars.detach(self.model)
        for hook in self.hooks:
            _give_back(hook)
        self.hooks.clear()
        self._scalars.forget_skips()

    def rest(self, resting: bool) -> None:
        """Whether another watch may take the optimizers."""
        for hook in self.hooks:
            hook.resting = resting

    def prepare(self) -> None:
        """Make what must be there before the next step is compiled."""
        for hook in self.hooks:
            hook.most_scalars = max(hook.most_scalars, self._scalars.most)
            hook.prepare()

    def _scalars_with(self, leaf: Any, learning_rate: Any) -> dict[str, Any]:
        return (
            self._scalars.of_step(learning_rate) if self._leads(leaf) else {f"learning_rate/{leaf.name}": learning_rate}
        )

    def _carried_with(self, leaf: Any) -> Sequence[Any]:
        if not self._leads(leaf):
            return ()
        of_treatments = [variable for one in self._treatments for variable in getattr(one, "variables", ())]
        return (*of_treatments, *self._scalars.variables)

    def _leads(self, leaf: Any) -> bool:
        """Whether the scalars of the step travel with this optimizer's rows: the first that has anything to do."""
        self._drop_idle()
        mine = next((hook for hook in self.hooks if hook.optimizer is leaf), None)
        if mine is None:
            # Let go of, and called by a function that was compiled before.
            return False
        first = self.hooks[0]
        # While a MultiOptimizer is being built: in the order of its optimizers, without those that no variable has.
        if mine.whole is first.whole and leaf.built and not first.optimizer.built:
            self.hooks.remove(mine)
            self.hooks.insert(0, mine)
        return self.hooks[0] is mine

    def _drop_idle(self) -> None:
        """Let go of optimizers that a MultiOptimizer, as is known once it is built, has given no variable."""
        for hook in [one for one in self.hooks if _is_idle(one.optimizer, one.whole)]:
            self._say_idle(hook.optimizer)
            self.hooks.remove(hook)
            _give_back(hook)

    def _say_idle(self, leaf: Any) -> None:
        if leaf.name not in self._idle:
            self._idle.add(leaf.name)
            _log.warning(
                "Lossguard: %s has no variable to update and is not watched; the pattern of a MultiOptimizer must "
                "match a variable's whole path",
                leaf.name,
            )

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
        self._drop_idle()
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


def _give_back(hook: Hook) -> None:
    """The optimizer as it was."""
    hook.detach()
    leave_rows(hook.optimizer)
    hear_no_more(hook.optimizer)


def _without_scaling(optimizer: Any) -> Any:
    """What a LossScaleOptimizer scales for, or the optimizer itself."""
    inner = getattr(optimizer, "inner_optimizer", None)
    return optimizer if inner is None else _without_scaling(inner)


def _is_idle(leaf: Any, whole: Any) -> bool:
    """Whether `whole`, a MultiOptimizer that is built, has nothing to do for one of its optimizers."""
    return bool(whole.built and not leaf.built)


def _ring_rows(steps: int) -> int:
    """Four fetches long, as a power of two: one fetch may come late without a gap."""
    return max(256, 1 << (4 * steps - 1).bit_length())
