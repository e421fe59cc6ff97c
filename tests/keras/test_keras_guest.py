"""Guest manners in the trainer's own process: forks, interpreter exit, and restores by assigning values."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from conftest import MemorySink
from lossguard.journal.layout import attempt_folders
from lossguard.journal.reader import AttemptReader
from lossguard.keras import Watch
from lossguard.wire.chunk import AttemptStop, decode

SCRIPT = """
import os, sys, traceback
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
from lossguard.keras import Watch
watch = Watch("ads", "forked", journal=sys.argv[1], fetch_seconds=1e-9)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile(watch.wrap(keras.optimizers.SGD(0.1)), "mse")
class Fork(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            child = os.fork()
            if child == 0:
                try:
                    # All that a data worker could reach, interpreter exit included.
                    watch.after_step()
                    watch.flush()
                    watch.checkpoint("never")
                    watch.close("failed")
                    watch._attempts._at_exit()
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)  # the interpreter's own end would wait for threads of TensorFlow that the child has not
                os._exit(7)
            assert os.waitpid(child, 0)[1] >> 8 == 7
watch.__enter__()
model.fit(np.ones((32, 2)), np.ones((32, 1)), batch_size=4, verbose=0, callbacks=[watch, Fork()])
# No exit of the block: the end of the interpreter closes the attempt, which nobody called finished.
"""


def test_a_forked_child_writes_nothing_and_the_exit_of_the_interpreter_ends_the_attempt(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (folder,) = attempt_folders(tmp_path / "ads" / "forked")
    reader = AttemptReader(folder)
    steps, events = [], []
    while (record := reader.next()) is not None:
        chunk = decode(record.chunk)
        steps += [int(step) for step in chunk.frames.steps]
        events += [event for event in chunk.events if isinstance(event, AttemptStop)]
        reader.acknowledge(record)
    reader.close()
    assert steps == list(range(1, 9))
    assert [(event.step, event.reason) for event in events] == [(8, "interrupted")]
    assert not reader.alive()


@pytest.mark.parametrize("way", ["fit", "steps"])
def test_an_attempt_that_cannot_be_opened_is_not_tried_again_at_every_step(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossguard.guard.swallow", lambda entry, error: None)
    asked, sinks = [], []

    def opened(*places: Any, **options: Any) -> MemorySink:
        asked.append(options["start_step"])
        if len(asked) == 1:
            raise PermissionError("read-only by now")
        sinks.append(MemorySink(*places, **options))
        return sinks[-1]

    mine = Watch("ads", "ranker", open_recorder=opened, budget=None)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(mine.wrap(keras.optimizers.SGD(0.1)), "mse")
    x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    for _ in range(2):
        if way == "fit":
            model.fit(x, y, batch_size=2, verbose=0, callbacks=[mine])
        else:
            with mine:
                for _ in range(4):
                    model.train_on_batch(x, y)
                    mine.after_step()
    assert asked == [0, 4]
    assert sinks[0].steps == [5, 6, 7, 8]


def trained(watch: Watch | None, state: list[np.ndarray] | None = None) -> tuple[keras.Model, list[np.ndarray]]:
    """Two steps from a state, and the state after them: all there is to restore by assigning values."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = keras.optimizers.Adam(0.1)
    model.compile(optimizer if watch is None else watch.wrap(optimizer), "mse")
    optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    if state is not None:
        for variable, value in zip({id(one): one for one in variables}.values(), state, strict=True):
            variable.assign(value)
    x = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5], [2.0, 1.0]], "float32")
    callbacks: list[Any] = [] if watch is None else [watch]
    model.fit(x, x[:, :1], batch_size=2, shuffle=False, verbose=0, callbacks=callbacks)
    return model, [variable.numpy() for variable in {id(one): one for one in variables}.values()]


def test_values_restored_by_assigning_interchange_with_the_bare_optimizer(
    watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    _, bare = trained(None)
    _, watched = trained(watch())
    assert len(bare) == len(watched), "nothing of ours is among the variables that a checkpoint holds"
    _, bare_after = trained(None, watched)
    _, watched_after = trained(watch(), bare)
    for one, other in zip(bare_after, watched_after, strict=True):
        assert np.array_equal(one, other)
    assert [sink.steps for sink in sinks] == [[1, 2], [3, 4]]
