"""`Watch`: what a Keras user touches.

Guarantees. Wrong arguments raise in the constructor, a model that cannot be watched raises before the first step, and
from then on nothing of ours raises into or waits in the training. Every update is one frame, numbered by
`optimizer.iterations`, whatever `steps_per_execution` is. However training ends (normally, by Ctrl-C, by an exception
in the user's step, at interpreter exit), the attempt ends with that reason and with its last frame.
"""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import keras

from lossguard.keras.attempt import Destination
from lossguard.keras.attempts import Attempts
from lossguard.keras.backends import backend
from lossguard.keras.budget import checked_share
from lossguard.keras.coverage import Coverage
from lossguard.keras.describe import checked_counts, checked_journal, checked_service, checked_treatments
from lossguard.keras.enclosure import enclose, leave, reason_of
from lossguard.keras.fetch import Sink
from lossguard.keras.reaction import FETCH_STEPS, OnFullDivergence, TrainingStopped, reaction_of
from lossguard.keras.scalars import StepScalars
from lossguard.keras.sharpness import Sharpness
from lossguard.keras.tasks import Task, checked_kinds, checked_logits, compiled_tasks, said_tasks
from lossguard.keras.training import Training
from lossguard.keras.treatments.base import Treatment, checked_patterns
from lossguard.recorder import Recorder, checked_config, checked_token
from lossguard.wire.chunk import AttemptEnd
from lossguard.wire.names import check_name

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
        tasks: `{"click": "binary", "play": "regression"}`; None infers them from the compiled losses. Outputs that
            the model has no names for take these in their order.
        logits: binary tasks whose outputs are logits; needed only where no compiled loss says so (`from_logits=True`).
        treatment: one treatment or several, applied in order; None watches only.
        window_steps: length of a sliding window over which `auc/<task>` and `window_rmse/<task>` are measured, too
            (`lossguard.keras.window`); None measures none.
        batch_id: from the step's inputs `x` to one whole number that names the batch (a position in the data set, a
            hash), a tensor, or to a pair of them, the file's and the offset's in it; recorded as the scalar `batch_id`,
            and the file's as `batch_file`, so that an incident names batches.
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
        names = (self.project, self.run, checked_service(service), checked_token(token))
        if not callable(open_recorder):
            raise ValueError(f"open_recorder: must be a function, got {open_recorder!r}")
        destination = Destination(self.journal, *names, open_recorder)
        checked_counts(full_every=full_every, fetch_steps=fetch_steps)
        checked_counts(window_steps=1 if window_steps is None else window_steps)
        if not (isinstance(fetch_seconds, (int, float)) and fetch_seconds > 0):
            raise ValueError(f"fetch_seconds: must be a positive number of seconds, got {fetch_seconds!r}")
        self._kinds = checked_kinds(tasks)
        self._logits = checked_logits(logits, self._kinds)
        treatments = checked_treatments(treatment)
        reaction = reaction_of(on_full_divergence, treatments)
        if reaction is not None:
            treatments = (*treatments, *reaction.treatments)
            fetch_steps = min(fetch_steps, FETCH_STEPS)
        share = checked_share(budget)
        if sharpness is not None and not isinstance(sharpness, Sharpness):
            raise ValueError(f"sharpness: must be a Sharpness, got {sharpness!r}")
        self._sharpness = sharpness
        self._window_steps = window_steps

        self._scalars = StepScalars(said_tasks(self._kinds or {}, self._logits), batch_id)
        self._training = Training(
            self._scalars,
            treatments,
            full_every=full_every,
            unwatched=checked_patterns("unwatched", unwatched),
            dedupe_sparse=dedupe_sparse,
            acts=reaction is not None,
            fetch_steps=fetch_steps,
        )
        self._attempts = Attempts(
            destination,
            self._training,
            self._scalars,
            config=checked_config(config),
            full_every=full_every,
            budget=share,
            fetch_steps=fetch_steps,
            fetch_seconds=fetch_seconds,
            sharpness=sharpness,
            reaction=reaction,
        )
        self._last_batch = -1
        self._stays_open = False
        self._entered_at = 0
        self._said = False

    # --- putting it in

    def wrap(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """Watch an optimizer's updates: hooks this very object and returns it.

        Raises:
            ValueError: not a Keras optimizer, or one that another Watch watches.
        """
        self._training.wrap(optimizer)
        # As far as it is known already: on JAX a loop of one's own takes the optimizer's variables soon.
        self._training.prepare()
        return optimizer

    def attach(self, model: keras.Model) -> Self:
        """Watch a compiled model; returns this callback, to be given to `fit`.

        Raises:
            ValueError: the model is not compiled, or `tasks` names an output that it has not.
        """
        self.set_model(model)
        return self

    def detach(self) -> None:
        """Give the bare optimizer and model back, also within `fit`, whose step is then compiled again."""
        self.close()
        self._training.sync()
        self._training.let_go()
        if self._model is not None:
            backend.uncover_model(self._model)
            if self._model.train_function is not None:
                self._model.make_train_function(force=True)

    def coverage(self) -> Coverage:
        """Which weights are measured, what share of the parameters, and why the others are not; `print` it.

        Once a model is attached, or an optimizer wrapped; before its optimizer is built it says what will be.
        """
        return self._training.coverage()

    def set_model(self, model: keras.Model) -> None:
        """Called by `fit` before it begins, and by `attach`.

        Raises:
            ValueError: see `attach`.
        """
        if not isinstance(model, keras.Model):
            raise ValueError(f"model: must be a Keras model, got {model!r}")
        if not getattr(model, "compiled", False) or model.optimizer is None:
            raise ValueError("model: compile it with an optimizer before it can be watched")
        new = self._training.wrap_model(model)
        super().set_model(model)
        if hasattr(model.optimizer, "_stateful_handle_non_finite_grads"):
            self._scalars.count_skips(model.optimizer)
        self._scalars.tasks = compiled_tasks(model, self._kinds, self._logits)
        self._make_ready()
        backend.cover_model(model)
        if self._scalars.attach(model) or new:
            # A step that was compiled before does not contain us.
            model.train_function = None

    def _make_ready(self) -> None:
        if self._window_steps is not None:
            self._scalars.keep_window(self._window_steps, backend.scope(self._model))
        if self._sharpness is not None:
            self._sharpness.check(self._training.optimizers, self._model)
        self._training.prepare()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, known once a model is attached."""
        return self._scalars.tasks

    # --- what Keras calls

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Stand where an exception of the user's step passes by."""
        self._last_batch = -1
        self._attempts.go_on()
        enclose(self._model, lambda reason: self.close(reason, 10.0))

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Batches count from 0 in every epoch."""
        self._last_batch = -1

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Take the norms of weights that are likely to be saved."""
        if self._model is not None:
            last = self._model.stop_training or epoch + 1 == (self.params or {}).get("epochs")
            self._attempts.epoch_ended(last)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Open the attempt before the first step, after all callbacks have restored what they restore."""
        if self._attempts.wanted and self._training.hooks:
            self._attempts.open()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Take new rows off the device when it is time."""
        steps, self._last_batch = batch - self._last_batch, batch
        self._after(steps)

    def _after(self, steps: int) -> None:
        if why := self._attempts.turn(steps):
            self.close("failed", 10.0)
            if self._model is not None:
                self._model.stop_training = True
            raise TrainingStopped(f"run {self.run} is stopped: {why}")

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """End the attempt, unless this watch is used in a `with` block, which ends it."""
        leave(self._model)
        if self._stays_open and self._attempts.current is not None:
            self._attempts.flush(weigh=True)
        else:
            self.close("finished")

    # --- the attempt

    def __enter__(self) -> Self:
        """Several calls of `fit`, or the steps of a loop of one's own, in one `with` block are one attempt."""
        self._stays_open = True
        self._attempts.go_on()
        if self._model is not None:
            self.set_model(self._model)
            self._entered_at = self._training.updates()
        elif self._training.hooks:
            self._make_ready()
            self._attempts.open()
        return self

    @backend.uncompiled
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
        if not self._stays_open and self._attempts.current is None:
            self._say("after_step was called outside of a `with watch:` block, where nothing is recorded")
        self._training.returned(optimizer_variables)
        if self._attempts.wanted and self._stays_open and self._training.hooks:
            # `train_on_batch` calls no callback, so this is the first that is heard of its first step.
            updates = self._training.updates()
            self._attempts.open(self._entered_at if updates - self._entered_at < 2 else updates - 1)
        self._after(1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._stays_open = False
        if not self._training.hooks:
            self._say("nothing was watched in this block: watch.wrap(optimizer) before it, or watch.attach(model)")
        self.close(reason_of(kind))

    def _say(self, what: str) -> None:
        """Warn once of a watch that records nothing."""
        if not self._said:
            self._said = True
            _log.warning("Lossguard: run %s: %s", self.run, what)

    @property
    def attempt(self) -> str | None:
        """The attempt's key; None while none is open."""
        attempt = self._attempts.current
        return None if attempt is None else getattr(attempt.sink, "attempt", None)

    def flush(self) -> None:
        """Take the new rows of all rings off the device. In a loop of one's own, call it between steps."""
        self._attempts.flush()

    def checkpoint(self, path: str | os.PathLike[str], *, step: int | None = None, has_slots: bool = True) -> None:
        """Say that the model was saved. The frame of the step then has the weights' norms, by which a gate knows them.

        Args:
            path: where.
            step: the last step in it; None for now.
            has_slots: whether the optimizer's state is in it, without which it is no rollback target.
        """
        self._attempts.checkpoint(path, step, has_slots)

    def close(self, reason: AttemptEnd = "finished", timeout_seconds: float = 30.0) -> None:
        """End the attempt. Calling it again does nothing."""
        self._attempts.close(reason, timeout_seconds)
