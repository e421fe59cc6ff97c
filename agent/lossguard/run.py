"""`lossguard.Run`: log scalars and stats from any training loop, in any framework.

The same journal, wire and detectors as the Keras integration. Each logged step becomes a frame; values that a step does
not log are absent in it, which is not the same as NaN.
"""

import functools
import itertools
import logging
import operator
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from lossguard import drops
from lossguard.guard import guarded
from lossguard.recorder import Recorder
from lossguard.wire.chunk import AttemptEnd, Checkpoint
from lossguard.wire.frame import Frames, Schema

_OPTIONS = ("seal_frames", "seal_seconds", "journal_bytes", "mantissa_bits", "queue_bytes", "files")
_NOT_LOGGED: bool | None = None
_log = logging.getLogger("lossguard")


class Run:
    """One attempt of a run.

    Args:
        project, run: the run's names (`lossguard.wire.names`).
        journal: root of the journal, on a local disk.
        service: URL of the service; None leaves the shipping to `lossguard sidecar`.
        token: bearer token for the service.
        start_step: the step of the checkpoint that this attempt starts from.
        tasks: task name to "binary" or "regression".
        config: whatever describes the run; must be JSON-like.
        recorder: see `lossguard.recorder.Recorder`.

    Raises:
        ValueError: an argument is wrong; the message names it.

    Example:
        >>> import tempfile, lossguard
        >>> folder = tempfile.TemporaryDirectory()
        >>> with lossguard.Run("ads", "ranker-7", journal=folder.name) as run:
        ...     for step in range(1, 4):
        ...         _ = run.log(step, {"loss": 0.7 / step}, {"dense/kernel": {"gradient_norm": 0.1}})
        >>> run.counters["frames_sealed"]
        3
        >>> folder.cleanup()
    """

    def __init__(
        self,
        project: str,
        run: str,
        *,
        journal: str | os.PathLike[str] = ".lossguard/journal",
        service: str | None = None,
        token: str | None = None,
        start_step: int = 0,
        tasks: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        **recorder: Any,
    ) -> None:
        kinds = _checked_tasks(tasks)
        if not isinstance(config, Mapping | None):
            raise ValueError(f"config: must be a JSON-like mapping, got {config!r}")
        if unknown := [name for name in recorder if name not in _OPTIONS]:
            raise TypeError(f"Run has no argument {unknown[0]!r}; further ones are {', '.join(_OPTIONS)}")
        try:
            self._recorder = Recorder(
                journal,
                project,
                run,
                start_step=start_step,
                config={"tasks": kinds, **(config or {})},
                service=service,
                token=token,
                **recorder,
            )
        except ValueError as error:
            # The recorder's name for what is called `journal` here.
            raise ValueError(str(error).replace("directory:", "journal:", 1)) from None
        self._step = start_step
        self._told_order = False
        self._schema = Schema(())

    @property
    def attempt(self) -> str:
        """The attempt's 32 hex digits."""
        return self._recorder.attempt

    @property
    def counters(self) -> dict[str, int]:
        """See `Recorder.counters`."""
        return self._recorder.counters

    def log(
        self,
        step: int,
        scalars: Mapping[str, SupportsFloat],
        layers: Mapping[str, Mapping[str, SupportsFloat]] | None = None,
    ) -> bool:
        """Log one step.

        Args:
            step: the number of the optimizer update, counted from 1; must increase.
            scalars: name to value, for example `{"loss": 0.61, "loss/click": 0.4}`; anything `float` takes.
            layers: layer to stat to value, for example `{"dense/kernel": {"gradient_norm": 0.1}}`; the same stats for
                all layers of a step. None at a step without stats.

        Returns:
            False if the frame was dropped and counted. It never raises and never waits.
        """
        logged = self._log(step, scalars, layers)
        if logged is None:
            self._recorder.drop(drops.NOT_ENCODABLE, 1)
        return bool(logged)

    @guarded("Run.log", _NOT_LOGGED)
    def _log(
        self,
        step: int,
        scalars: Mapping[str, SupportsFloat],
        layers: Mapping[str, Mapping[str, SupportsFloat]] | None,
    ) -> bool | None:
        step = _whole("step", step)
        scalars = _numbers("scalars", scalars)
        layers = {} if layers is None else layers
        block = self._block_as_before(layers)
        if block is not None:
            schema = self._schema_with(scalars, {}, ())
            stats: Sequence[str] = schema.stats
        else:
            if not isinstance(layers, Mapping):
                raise ValueError(f"layers: must map layers to their stats, got {layers!r}")
            layers = {layer: _numbers(f"layers[{layer!r}]", of_layer) for layer, of_layer in layers.items()}
            stats = _common_stats(layers)
            schema = self._schema_with(scalars, layers, stats)
            block = np.full((1, len(schema.layers), len(schema.stats)), np.nan, np.float32)
            if stats:
                rows = [[layers[layer][name] for name in stats] for layer in schema.layers]
                block[0][:, [schema.stats.index(name) for name in stats]] = rows
        values = np.full((1, len(schema.scalars)), np.nan)
        present = np.zeros((1, len(schema.scalars)), np.bool_)
        for column, name in enumerate(schema.scalars):
            if name in scalars:
                values[0, column] = scalars[name]
                present[0, column] = True
        frames = Frames(
            schema=schema,
            steps=np.array([step], np.int64),
            times=np.array([time.time()]),
            scalars=values,
            stats=block,
            scalars_present=present,
            stats_present=np.array([[name in stats for name in schema.stats]], np.bool_).reshape(1, -1),
        )
        if self._recorder.record(frames):
            self._step = step
            return True
        if step <= self._step and not self._told_order:
            self._told_order = True
            _log.warning(
                "Lossguard: step %d of run %s is not recorded: steps count the updates from 1 and increase, and this "
                "one does not come after step %d; in a loop that counts from 0, log step + 1",
                step,
                self._recorder.run,
                self._step,
            )
        return False

    def _block_as_before(self, layers: Any) -> NDArray[np.float32] | None:
        """[1, L, K] of layers that have the names of the schema in its order, as nearly all steps' have; else None.

        What is wrong with a value, the slower way says.
        """
        schema = self._schema
        if not schema.stats or type(layers) is not dict or tuple(layers) != schema.layers:
            return None
        if not all(type(of_layer) is dict and len(of_layer) == len(schema.stats) for of_layer in layers.values()):
            return None
        rows = map(operator.itemgetter(*schema.stats), layers.values())
        numbers = rows if len(schema.stats) == 1 else itertools.chain.from_iterable(rows)
        shape = (1, len(schema.layers), len(schema.stats))
        try:
            return np.fromiter(map(float, numbers), np.float32, shape[1] * shape[2]).reshape(shape)
        except (KeyError, TypeError, ValueError):
            return None

    def _schema_with(
        self,
        scalars: Mapping[str, SupportsFloat],
        layers: Mapping[str, Mapping[str, SupportsFloat]],
        stats: Sequence[str],
    ) -> Schema:
        # Scalars and stats are only added, absent where a step has none of them, so that something logged every tenth
        # step does not end a chunk twice in ten steps. Presence is per stat and not per layer: other layers are another
        # schema.
        old = self._schema
        same_layers = not layers or layers.keys() == set(old.layers)
        if same_layers and scalars.keys() <= set(old.scalars) and set(stats) <= set(old.stats):
            return old
        self._schema = Schema(
            tuple(dict.fromkeys([*old.scalars, *scalars])),
            old.layers if same_layers else tuple(layers),
            tuple(dict.fromkeys([*old.stats, *stats])),
        )
        return self._schema

    @guarded("Run.checkpoint", False)
    def checkpoint(self, path: str | os.PathLike[str], *, step: int | None = None, has_slots: bool = True) -> bool:
        """Say that the model was saved after `step` (the last logged one by default).

        Args:
            path: where, as you name it.
            step: the last step in it.
            has_slots: False if the optimizer's slots are not in it; then it is no rollback target.
        """
        last = self._step if step is None else _whole("step", step)
        return self._recorder.event(Checkpoint(last, time.time(), os.fspath(path), has_slots))

    def close(self, reason: AttemptEnd = "finished") -> None:
        """End the attempt; also done by `with` and at interpreter exit."""
        self._recorder.close(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("finished")
        else:
            self.close("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")


def _checked_tasks(tasks: Mapping[str, str] | None) -> dict[str, str]:
    if not isinstance(tasks, Mapping | None):
        raise ValueError(f'tasks: must map names to "binary" or "regression", got {tasks!r}')
    wrong = {name: kind for name, kind in (tasks or {}).items() if kind not in ("binary", "regression")}
    if wrong:
        raise ValueError(f'tasks: each must be "binary" or "regression", got {wrong}')
    return dict(tasks or {})


def _whole(what: str, number: Any) -> int:
    if not isinstance(number, (bool, str)):
        with suppress(TypeError, ValueError, OverflowError):
            return operator.index(number) if hasattr(number, "__index__") else _exact(float(number))
    raise ValueError(f"{what}: must be a whole number, got {number!r}")


def _exact(number: float) -> int:
    if number != int(number):
        raise ValueError
    return int(number)


def _numbers(what: str, values: Any) -> dict[str, float]:
    """Names and numbers, each read once, as a device may be waited for; what is wrong is told in a sentence."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{what}: must map names to numbers, got {values!r}")
    found = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(f"{what}: names must be text, got {name!r}")
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{what}: {name!r} must be one number, got {str(value)[:80]!r}") from None
    return found


@functools.cache
def _warn_ragged() -> None:
    _log.warning("Lossguard: the layers of a step have different stats; only those that all of them have are kept")


def _common_stats(layers: Mapping[str, Mapping[str, SupportsFloat]]) -> list[str]:
    """The stats that every layer of the step has, in the order of the first one."""
    found = iter(layers.values())
    first = next(found, {})
    names = first.keys()
    common = set(first)
    for stats in found:
        if stats.keys() != names:
            common &= stats.keys()
            _warn_ragged()
    return [name for name in first if name in common]
