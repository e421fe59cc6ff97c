import logging
import os
import threading

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from click_and_play import click_and_play  # noqa: E402
from lossguard.keras import Watch  # noqa: E402
from lossguard.wire.chunk import Event  # noqa: E402
from lossguard.wire.frame import Frames  # noqa: E402

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/keras" in str(item.path.as_posix()):
            item.add_marker(pytest.mark.tensorflow)


@pytest.fixture(autouse=True)
def _nothing_hides(guard_raises: None) -> None:
    """Errors of ours must not be swallowed here."""


@pytest.fixture(autouse=True)
def _tensorflow_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It warns of many tracings, counted over the functions of all tests that ran before in the process."""
    monkeypatch.setattr(logging.getLogger("tensorflow"), "propagate", False)


class MemorySink:
    """A recorder that keeps what it gets."""

    def __init__(self, directory: Any, project: str, run: str, **options: Any) -> None:
        self.options = options
        self.blocks: list[Frames] = []
        self.events: list[Event] = []
        self.drops: dict[str, int] = {}
        self.ended: str | None = None
        self._more = threading.Condition()
        self.skipped_at_the_end = 0
        self.sealed: list[int] = []

    def record(self, frames: Frames) -> bool:
        with self._more:
            self.blocks.append(frames)
            self._more.notify_all()
        return True

    def wait_for(self, step: int) -> None:
        """Until the frame of that step, and all before it, are here."""
        with self._more:
            assert self._more.wait_for(lambda: self.blocks and self.blocks[-1].steps[-1] >= step, 60.0)

    def event(self, event: Event) -> bool:
        self.events.append(event)
        return True

    def drop(self, reason: str, count: int) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + count

    def seal(self) -> None:
        with self._more:
            self.sealed.append(int(self.blocks[-1].steps[-1]) if self.blocks else 0)
            self._more.notify_all()

    def wait_until_sealed(self, step: int) -> None:
        """Until that step, and none after it, was to be sealed."""
        with self._more:
            assert self._more.wait_for(lambda: step in self.sealed, 60.0)

    def close(self, reason: str = "finished", timeout_seconds: float = 30.0, *, skipped_steps: int = 0) -> None:
        self.ended = reason
        self.skipped_at_the_end = skipped_steps

    @property
    def steps(self) -> list[int]:
        return [int(step) for block in self.blocks for step in block.steps]

    def scalar(self, name: str) -> np.ndarray:
        return np.concatenate([block.scalars[:, block.schema.scalars.index(name)] for block in self.blocks])

    def present(self, name: str) -> np.ndarray:
        return np.concatenate([block.scalars_present[:, block.schema.scalars.index(name)] for block in self.blocks])

    def stat(self, layer: str, stat: str) -> np.ndarray:
        schema = self.blocks[0].schema
        row, column = schema.layers.index(layer), schema.stats.index(stat)
        return np.concatenate([block.stats[:, row, column] for block in self.blocks])

    def measured(self, stat: str) -> np.ndarray:
        column = self.blocks[0].schema.stats.index(stat)
        return np.concatenate([block.stats_present[:, column] for block in self.blocks])


class KeepPace(keras.callbacks.Callback):
    """Waits after every execution for the thread behind, whose decisions a busy machine would let come too late.

    Stands behind the watch; what the watch took off the device is judged when the next step begins.
    """

    def __init__(self, watch: Watch, sinks: list[MemorySink]) -> None:
        super().__init__()
        self.watch, self.sinks = watch, sinks

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        attempt = self.watch._attempts.current
        if attempt is not None and attempt._read_step > self.sinks[-1].options["start_step"]:
            self.sinks[-1].wait_for(attempt._read_step)


@pytest.fixture
def sinks() -> list[MemorySink]:
    """The recorders that were opened, in order."""
    return []


@pytest.fixture
def watch(sinks: list[MemorySink]) -> Callable[..., Watch]:
    """Makes a Watch whose frames go to `sinks`; without a budget, so that no clock decides what is measured."""

    def opened(*args: Any, **options: Any) -> MemorySink:
        sinks.append(MemorySink(*args, **options))
        return sinks[-1]

    return lambda **options: Watch("ads", "ranker", open_recorder=opened, **{"budget": None, **options})


def two_tasks() -> "keras.Model":
    """Of the same weights each time."""
    keras.utils.set_random_seed(7)
    return click_and_play()
