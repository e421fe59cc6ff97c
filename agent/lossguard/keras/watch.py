"""`Watch`: what a Keras user touches.

Guarantees. Wrong arguments raise in the constructor, a model that cannot be watched raises before the first step, and
from then on nothing of ours raises into or waits in the training. Every update is one frame, numbered by
`optimizer.iterations`, whatever `steps_per_execution` is. However training ends (normally, by Ctrl-C, by an exception
in the user's step, at interpreter exit), the attempt ends with that reason and with its last frame.
"""

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import keras

from lossguard import drops
from lossguard.guard import guarded
from lossguard.keras.backends import backend
from lossguard.keras.beside import Beside
from lossguard.keras.budget import COST, Budget, checked_share
from lossguard.keras.coverage import Coverage, cover
from lossguard.keras.describe import checked_journal, checked_treatments, describe
from lossguard.keras.distribution import rank_of, refuse
from lossguard.keras.enclosure import enclose, leave, reason_of
from lossguard.keras.fetch import Fetcher, Sink, Snapshot
from lossguard.keras.merge import leave_rows, merge_rows
from lossguard.keras.optimizer import Hook, leaves
from lossguard.keras.price import price_of
from lossguard.keras.reaction import FETCH_STEPS, OnFullDivergence, Trainee, TrainingStopped, reaction_of
from lossguard.keras.scalars import StepScalars
from lossguard.keras.sharpness import SCALARS, Sharpness
from lossguard.keras.tasks import Task, checked_kinds, compiled_tasks, said_tasks
from lossguard.keras.treatments.base import Treatment, checked_patterns
from lossguard.recorder import Recorder
from lossguard.wire.chunk import AttemptEnd, Checkpoint
from lossguard.wire.names import check_name
from lossguard.worker import Worker

_log = logging.getLogger("lossguard")


class Watch(keras.callbacks.Callback):
    """Watches the training of one model.

    Three ways to put it in, all the same in effect: as a callback alone, `watch.attach(model)` after `compile`, or
    `watch.wrap(optimizer)` before it.

    Args:
        project, run: the run's names (`lossguard.wire.names`).
        journal: folder of the journal, on a local disk; a sidecar ships it.
        service: URL of the service; given, a thread of this process ships the journal.
        token: bearer token for the service.
        tasks: `{"click": "binary", "play": "regression"}`; None infers them from the compiled losses.
        logits: binary tasks whose outputs are logits; needed only where no compiled loss says so (`from_logits=True`).
        treatment: one treatment or several, applied in order; None watches only.
        window_steps: length of a sliding window over which `auc/<task>` and `window_rmse/<task>` are measured, too
            (`lossguard.keras.window`); None measures none.
        batch_id: from the step's inputs `x` to one whole number that names the batch (a position in the data set, an
            offset, a hash below 2**44), a tensor; recorded as the scalar `batch_id`, so that an incident names batches.
        config: free keys that describe the run, JSON-like.
        unwatched: regular expressions; layers whose paths match are not measured. For large embedding tables with
            sparse gradients, whose measuring costs a pass over the table in every step.
        dedupe_sparse: add up equal rows of an embedding's gradient before the optimizer sees them, which changes the
            numbers that bare Keras 3 gives (`lossguard.keras.merge`).
        full_every: every how many steps all stats are measured; gradient norms and factors are measured in every step,
            and everything in every step for a while after a jump (`lossguard.keras.cadence`). 1 measures all always.
        budget: share of the training's time that watching may take (`lossguard.keras.budget`). Above it all stats are
            measured more rarely than `full_every`; gradient norms are measured in every step whatever they cost. The
            scalar `agent_cost` tells the share. None measures no cost and keeps to `full_every`.
        sharpness: a probe (`lossguard.keras.Sharpness`) that adds `sharpness_ratio` now and then; None for none.
        fetch_steps: rows are taken off the device after at most so many steps ...
        fetch_seconds: ... or seconds, whatever comes first, between two executions of the compiled step.
        on_full_divergence: what to do by itself about a divergence. `advise` does nothing here, the service advises;
            `stop` raises `TrainingStopped`; `rollback`, or a `Rollback`, restores weights and optimizer state from
            before the first sign, changes something and opens a new attempt (`lossguard.keras.reaction`). For the
            latter two the detectors run in this process, and rows are fetched every 16 steps at least.
        open_recorder: makes what frames go to, with `Recorder`'s arguments.

    Raises:
        ValueError: an argument is wrong; the message names it.

    A loop of one's own wraps the optimizer, calls `observe` in its step and `after_step` behind it, in a `with` block:

        watch.wrap(optimizer)
        with watch:
            for batch in data:
                step(batch)  # computes loss and gradients; watch.observe(loss); optimizer.apply(gradients, variables)
                watch.after_step()

    Example:
        watch = Watch("ads", "ranker-7", treatment=Clippy())
        model.compile(optimizer=watch.wrap(keras.optimizers.Adam(1e-3)), loss="mse")
        model.fit(x, y, callbacks=[watch])
    """

    def __init__(
        self,
        project: str,
        run: str,
        *,
        journal: str | os.PathLike[str] = ".lossguard/journal",
        service: str | None = None,
        token: str | None = None,
        tasks: Mapping[str, str] | None = None,
        logits: Collection[str] = (),
        treatment: Treatment | Sequence[Treatment] | None = None,
        window_steps: int | None = None,
        batch_id: Callable[[Any], Any] | None = None,
        config: Mapping[str, Any] | None = None,
        unwatched: Sequence[str] = (),
        dedupe_sparse: bool = False,
        full_every: int = 16,
        fetch_steps: int = 64,
        fetch_seconds: float = 1.0,
        budget: float | None = 0.01,
        sharpness: Sharpness | None = None,
        on_full_divergence: OnFullDivergence = "advise",
        open_recorder: Callable[..., Sink] = Recorder,
    ) -> None:
        super().__init__()
        self.project, self.run = check_name("project", project), check_name("run", run)
        self.journal = checked_journal(journal)
        if service is not None and not str(service).startswith(("http://", "https://")):
            raise ValueError(f"service: must be a URL like http://host:port, got {service!r}")
        counts = {"full_every": full_every, "fetch_steps": fetch_steps, "window_steps": window_steps}
        for name, number in counts.items():
            if number is None and name == "window_steps":
                continue
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name}: must be a whole number of at least 1, got {number!r}")
        if not fetch_seconds > 0:
            raise ValueError(f"fetch_seconds: must be positive, got {fetch_seconds!r}")
        self._service, self._token = service, token
        self._kinds = checked_kinds(tasks)
        if batch_id is not None and not callable(batch_id):
            raise ValueError(f"batch_id: must be a function of the step's inputs, got {batch_id!r}")
        if isinstance(logits, str):
            raise ValueError(f"logits: must be a sequence of task names, got the one string {logits!r}")
        self._logits = tuple(logits)
        self._treatments = checked_treatments(treatment)
        self._reaction = reaction_of(on_full_divergence, self._treatments)
        self._trainee = Trainee(self._updates, self._state, self._new_attempt)
        if self._reaction is not None:
            self._treatments = (*self._treatments, *self._reaction.treatments)
            fetch_steps = min(fetch_steps, FETCH_STEPS)
        self._user_config = dict(config or {})
        self._full_every = full_every
        self._budget_share = checked_share(budget)
        if sharpness is not None and not isinstance(sharpness, Sharpness):
            raise ValueError(f"sharpness: must be a Sharpness, got {sharpness!r}")
        self._sharpness = sharpness
        self._unwatched = checked_patterns("unwatched", unwatched)
        if not isinstance(dedupe_sparse, bool):
            raise ValueError(f"dedupe_sparse: must be True or False, got {dedupe_sparse!r}")
        self._dedupe_sparse = dedupe_sparse
        self._window_steps = window_steps
        self._fetch_steps, self._fetch_seconds = fetch_steps, fetch_seconds
        self._open_recorder = open_recorder

        self._hooks: list[Hook] = []
        self._optimizer: Any = None
        self._loop_state: Sequence[Any] | None = None
        self._scalars = StepScalars(said_tasks(self._kinds or {}, self._logits), batch_id)
        self._sink: Sink | None = None
        self._fetcher: Fetcher | None = None
        self._beside: Beside | None = None
        self._budget: Budget | None = None
        self._read_step = 0
        self._last_fetch = 0.0
        self._steps_waiting = 0
        self._stretch = 1
        self._last_batch = -1
        self._stays_open = False
        self._process = os.getpid()

    # --- putting it in

    def wrap(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """Watch an optimizer's updates: hooks this very object and returns it.

        Raises:
            ValueError: not a Keras optimizer, or one that another Watch watches.
        """
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise ValueError(f"optimizer: must be a Keras optimizer, got {type(optimizer).__name__}")
        self._optimizer = optimizer
        for leaf in leaves(optimizer):
            if getattr(leaf, "optimizers", None) == []:
                continue
            if known := next((hook for hook in self._hooks if hook.optimizer is leaf), None):
                known.cover(optimizer)
                continue
            if "_backend_update_step" in leaf.__dict__:
                raise ValueError(f"optimizer: {leaf.name} is watched by another Watch; detach() that one first")
            refuse(leaf, acts=self._reaction is not None)
            first = not self._hooks
            scalars = self._scalars.of_step if first else _learning_rate_of(leaf.name)
            rows = _ring_rows(self._fetch_steps)
            hook = Hook(
                leaf,
                self._treatments,
                scalars,
                rows=rows,
                full_every=self._full_every,
                unwatched=self._unwatched,
                carried=self._carried if first else tuple,
            )
            hook.cover(optimizer)
            self._hooks.append(hook)
            if self._dedupe_sparse:
                merge_rows(leaf)
                _log.info("Lossguard: dedupe_sparse merges rows: %s trains by other numbers than bare Keras", leaf.name)
        return optimizer

    def attach(self, model: keras.Model) -> Self:
        """Watch a compiled model; returns this callback, to be given to `fit`.

        Raises:
            ValueError: the model is not compiled, or `tasks` names an output that it has not.
        """
        self.set_model(model)
        return self

    def detach(self) -> None:
        """Give the bare optimizer and model back; training goes on unwatched once the step is compiled again."""
        self._let_go()
        model = self._model
        if model is not None:
            self._scalars.detach(model)
            backend.uncover_model(model)
            model.train_function = None

    def coverage(self) -> Coverage:
        """Which weights are measured, what share of the parameters, and why the others are not; `print` it.

        Once a model is attached, or an optimizer wrapped; before its optimizer is built it says what will be.
        """
        return cover(self._model, [hook.optimizer for hook in self._hooks], self._treatments, self._unwatched)

    def _let_go(self) -> None:
        for hook in self._hooks:
            hook.detach()
            leave_rows(hook.optimizer)
        self._hooks = []

    def set_model(self, model: keras.Model) -> None:
        """Called by `fit` before it begins, and by `attach`.

        Raises:
            ValueError: see `attach`.
        """
        super().set_model(model)
        if not getattr(model, "compiled", False) or model.optimizer is None:
            raise ValueError("model: compile it with an optimizer before it can be watched")
        if not any(hook.optimizer in leaves(model.optimizer) for hook in self._hooks):
            self._let_go()
        for leaf in leaves(model.optimizer):
            refuse(leaf, model, acts=self._reaction is not None)
        known = len(self._hooks)
        self.wrap(model.optimizer)
        rows = _ring_rows(max(self._fetch_steps, int(model.steps_per_execution)))
        for hook in self._hooks:
            hook.rows = rows if hook.ring is None else hook.rows
        if hasattr(model.optimizer, "_stateful_handle_non_finite_grads"):
            self._scalars.count_skips(model.optimizer)
        self._scalars.tasks = compiled_tasks(model, self._kinds, self._logits)
        if self._window_steps is not None:
            self._scalars.keep_window(self._window_steps, backend.scope(model))
        if self._sharpness is not None:
            self._sharpness.check([hook.optimizer for hook in self._hooks], model)
        self._prepare()
        backend.cover_model(model)
        if self._scalars.attach(model) or len(self._hooks) > known:
            # A step that was compiled before does not contain us.
            model.train_function = None

    def _carried(self) -> Sequence[Any]:
        of_treatments = [variable for one in self._treatments for variable in getattr(one, "variables", ())]
        return (*of_treatments, *self._scalars.variables)

    def _prepare(self) -> None:
        if self._hooks:
            self._hooks[0].most_scalars = self._scalars.most
        for hook in self._hooks:
            hook.prepare()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, known once a model is attached."""
        return self._scalars.tasks

    # --- what Keras calls

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Stand where an exception of the user's step passes by."""
        self._last_batch = -1
        enclose(self._model, lambda reason: self.close(reason, 10.0))

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Batches count from 0 in every epoch."""
        self._last_batch = -1

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Open the attempt before the first step, after all callbacks have restored what they restore."""
        if self._sink is None:
            self._open()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Take new rows off the device when it is time."""
        steps, self._last_batch = batch - self._last_batch, batch
        self._after(steps)

    def _after(self, steps: int) -> None:
        if self._forked:
            return
        self._steps_waiting += steps
        self._probe(steps)
        due = time.monotonic() - self._last_fetch >= self._fetch_seconds
        if due or self._steps_waiting >= self._fetch_steps:
            self.flush()
        if self._reaction is not None and (why := self._react(steps)):
            self.close("failed", 10.0)
            if self._model is not None:
                self._model.stop_training = True
            raise TrainingStopped(f"run {self.run} is stopped: {why}")

    @guarded("Watch.probe", None)
    def _probe(self, steps: int) -> None:
        if self._sharpness is not None and self._beside is not None and self._sharpness.due(steps):
            self._beside.put(self._hooks[0].step, self._sharpness.probe())

    @guarded("Watch.react", "")
    def _react(self, steps: int) -> str:
        return "" if self._reaction is None or self._sink is None else self._reaction.turn(steps, self._trainee)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """End the attempt, unless this watch is used in a `with` block, which ends it."""
        leave(self._model)
        if self._stays_open and self._sink is not None:
            self.flush()
        else:
            self.close("finished")

    # --- the attempt

    def __enter__(self) -> Self:
        """Several calls of `fit`, or the steps of a loop of one's own, in one `with` block are one attempt."""
        self._stays_open = True
        if self._model is None and self._hooks:
            if self._window_steps is not None:
                self._scalars.keep_window(self._window_steps, backend.scope(None))
            self._prepare()
            if self._sharpness is not None:
                self._sharpness.check([hook.optimizer for hook in self._hooks], None)
            self._open()
        return self

    def observe(
        self,
        loss: Any,
        labels: Any = None,
        outputs: Any = None,
        *,
        sample_weights: Any = None,
        task_losses: Mapping[str, Any] | None = None,
        inputs: Any = None,
    ) -> None:
        """In a loop of one's own: what this step's scalars are computed from. Call it before `optimizer.apply`.

        Call it inside the compiled step, with its tensors; nothing is computed or copied here.

        Args:
            loss: the total that is minimised.
            labels, outputs: of the tasks named in `tasks`, by name (or the tensors themselves if there is one).
            sample_weights: like labels.
            task_losses: the losses of the tasks, by name.
            inputs: what `batch_id` is asked about.
        """
        self._scalars.observe(loss, labels, outputs, sample_weights, task_losses, inputs)

    def after_step(self, optimizer_variables: Sequence[Any] | None = None) -> None:
        """In a loop of one's own: call it after every step, outside of the compiled function.

        Args:
            optimizer_variables: on JAX, where a step is a function of its state: the optimizer's variables as the step
                returned them.

        Raises:
            TrainingStopped: only with `on_full_divergence`, see there.
        """
        self._loop_state = optimizer_variables
        self._after(1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._stays_open = False
        self.close(reason_of(kind))

    @property
    def attempt(self) -> str | None:
        """The attempt's key; None while none is open."""
        return getattr(self._sink, "attempt", None)

    @guarded("Watch.flush", None)
    def flush(self) -> None:
        """Take the new rows of all rings off the device. In a loop of one's own, call it between steps."""
        if self._forked:
            return
        if self._fetcher is None or self._sink is None or any(hook.ring is None for hook in self._hooks):
            return
        if self._budget is None:
            self._fetch(self._fetcher, self._sink)
            return
        with self._budget.training_thread():
            self._fetch(self._fetcher, self._sink)
        self._keep_to(self._budget)

    def _fetch(self, fetcher: Fetcher, sink: Sink) -> None:
        self._last_fetch, self._steps_waiting = time.monotonic(), 0
        self._sync()
        last = min(hook.step for hook in self._hooks)
        first = self._read_step + 1
        room = min(hook.rows for hook in self._hooks)
        if last - first + 1 > room:
            sink.drop(drops.RING_OVERRUN, last - first + 1 - room)
            first = last - room + 1
        if last < first:
            return
        parts = tuple((hook.ring.layout, hook.ring.snapshot(first, last)) for hook in self._hooks if hook.ring)
        fetcher.hand_over(Snapshot(first, last - first + 1, parts, time.time()))
        self._read_step = last

    @guarded("Watch.checkpoint", None)
    def checkpoint(self, path: str | os.PathLike[str], *, step: int | None = None, has_slots: bool = True) -> None:
        """Say that the model was saved.

        Args:
            path: where.
            step: the last step in it; None for now.
            has_slots: whether the optimizer's state is in it, without which it is no rollback target.
        """
        if self._fetcher is not None and not self._forked:
            self.flush()
            step = self._hooks[0].step if step is None else step
            self._fetcher.event(Checkpoint(step, time.time(), os.fspath(path), has_slots))

    @guarded("Watch.close", None)
    def close(self, reason: AttemptEnd = "finished", timeout_seconds: float = 30.0) -> None:
        """End the attempt. Calling it again does nothing."""
        sink, fetcher = self._sink, self._fetcher
        if sink is None or self._forked:
            return
        leave(self._model)
        self.flush()
        self._sink = self._fetcher = None
        atexit.unregister(self._at_exit)
        if self._model is not None:
            self._scalars.detach(self._model)
        if fetcher is not None:
            fetcher.close(timeout_seconds)
        sink.close(reason, timeout_seconds)

    @guarded("Watch.open", None)
    def _open(self) -> None:
        self._process = os.getpid()
        self._read_step = self._updates()
        rank = rank_of([hook.optimizer for hook in self._hooks])
        sink = self._chief() if rank == 0 else self._worker(rank)
        if self._reaction is not None:
            sink = self._reaction.begin(sink, self._task_kinds(), self._trainee)
        share = self._budget_share
        self._budget = None if share is None else Budget(share, self._full_every, time.time())
        names = (*(() if self._budget is None else (COST,)), *(() if self._sharpness is None else SCALARS))
        self._beside = Beside(sink, names, () if self._budget is None else [self._budget.judge])
        self._sink, self._fetcher = sink, Fetcher(self._beside)
        self._last_fetch, self._steps_waiting = time.monotonic(), 0
        atexit.register(self._at_exit)

    def _chief(self) -> Sink:
        return self._open_recorder(
            self.journal,
            self.project,
            self.run,
            start_step=self._read_step,
            config={**self._user_config, **self._config()},
            service=self._service,
            token=self._token,
        )

    def _worker(self, rank: int) -> Sink:
        where = (self.journal, self.project, self.run, rank)
        return Worker(*where, start_step=self._read_step, service=self._service, token=self._token)

    @property
    def _forked(self) -> bool:
        """A forked child neither journals nor touches the device, whose threads it has not: it might wait for ever."""
        return os.getpid() != self._process

    def _keep_to(self, budget: Budget) -> None:
        if budget.price is None:
            entries = [count for hook in self._hooks for count in hook.entries]
            budget.price = price_of(entries, jit=bool(getattr(self._model, "jit_compile", False)))
        if budget.stretch != self._stretch:
            self._stretch = budget.stretch
            for hook in self._hooks:
                hook.stretch(self._stretch)

    def _config(self) -> dict[str, Any]:
        trainable = [] if self._model is None else self._model.trainable_variables
        return {
            "tasks": self._task_kinds(),
            **({} if self._reaction is None else self._reaction.config),
            "full_every": self._full_every,
            "dedupe_sparse": self._dedupe_sparse,
            "budget": self._budget_share,
            "treatment": [treatment.describe() for treatment in self._treatments],
            **describe([hook.optimizer for hook in self._hooks], trainable, self._unwatched),
            "layers_unwatched": sorted(self.coverage().unwatched),
        }

    def _task_kinds(self) -> dict[str, str]:
        return {task.name: task.kind for task in self.tasks if task.kind is not None}

    def _sync(self) -> None:
        """Let variables have the values of the last step; on JAX the trainer, or the loop, keeps them to itself."""
        backend.sync(self._model)
        if self._loop_state is not None:
            backend.adopt(self._optimizer, self._loop_state)
            self._loop_state = None

    def _updates(self) -> int:
        self._sync()
        return self._hooks[0].step

    def _state(self) -> list[Any]:
        """Weights and optimizer state; nothing before the optimizer is built."""
        self._sync()
        optimizers = [hook.optimizer for hook in self._hooks]
        if self._model is not None:
            optimizers.append(self._model.optimizer)
        if not all(optimizer.built for optimizer in optimizers):
            return []
        weights = [] if self._model is None else self._model.weights
        trained = [variable for hook in self._hooks for variable in hook.optimizer._trainable_variables]
        slots = [variable for optimizer in optimizers for variable in backend.variables(optimizer)]
        return list({id(variable): variable for variable in (*weights, *trained, *slots)}.values())

    def _new_attempt(self, back: Callable[[], None]) -> None:
        self.flush()
        if self._sink is None or self._fetcher is None:
            return
        self._fetcher.close(10.0)
        self._sink.close("interrupted", 10.0)
        atexit.unregister(self._at_exit)
        try:
            back()
            if self._model is not None:
                # The epoch's averages would carry the divergence, NaN for ever, into other callbacks.
                self._model.reset_metrics()
        finally:
            self._open()

    def _at_exit(self) -> None:
        kind = getattr(sys, "last_type", None)
        self.close("interrupted" if kind is None else reason_of(kind), 5.0)


def _learning_rate_of(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda learning_rate: {f"learning_rate/{name}": learning_rate}


def _ring_rows(steps: int) -> int:
    """Four fetches long, as a power of two: one fetch may come late without a gap."""
    return max(256, 1 << (4 * steps - 1).bit_length())
