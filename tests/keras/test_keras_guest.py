"""Guest manners in the trainer's own process: forks, interpreter exit, and restores by assigning values."""

import functools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from conftest import MemorySink
from hanging_disk import HangingDisk
from lossguard.journal.layout import attempt_folders
from lossguard.journal.reader import AttemptReader
from lossguard.keras import Watch
from lossguard.recorder import Recorder
from lossguard.wire.chunk import AttemptStop, decode

SCRIPT = """
import multiprocessing, os, sys, traceback
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
            for way in ("fork", "spawn"):
                child = multiprocessing.get_context(way).Process(target=print, args=(way,))
                child.start()
                child.join()
                assert child.exitcode == 0
watch.__enter__()
model.fit(np.ones((32, 2)), np.ones((32, 1)), batch_size=4, verbose=0, callbacks=[watch, Fork()])
# No exit of the block: the end of the interpreter closes the attempt, which nobody called finished.
"""


def test_a_forked_child_writes_nothing_and_the_exit_of_the_interpreter_ends_the_attempt(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fork", "spawn"]
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


class AtBatch(keras.callbacks.Callback):
    """Does something behind the steps of these numbers."""

    def __init__(self, **done: Callable[[], Any]) -> None:
        super().__init__()
        self.done = done

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.done.get(f"batch_{batch}", lambda: None)()


def small(watch: Watch) -> keras.Model:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(watch.wrap(keras.optimizers.SGD(0.1)), "mse")
    return model


X, Y = np.ones((16, 2), "float32"), np.ones((16, 1), "float32")


def test_a_disk_that_hangs_holds_up_no_step(tmp_path: Path) -> None:
    disk = HangingDisk()
    mine = Watch(
        "ads", "ranker", journal=tmp_path, open_recorder=functools.partial(Recorder, files=disk), fetch_steps=1
    )
    # The disk hangs from the first step to the last; a step that waited for it would never end.
    there = AtBatch(batch_0=lambda: disk.begun.wait(60.0), batch_7=disk.let_go.set)
    small(mine).fit(X, Y, batch_size=2, verbose=0, callbacks=[mine, there])
    (folder,) = attempt_folders(tmp_path / "ads" / "ranker")
    reader = AttemptReader(folder)
    steps: list[int] = []
    while (record := reader.next()) is not None:
        steps += decode(record.chunk).frames.steps.tolist()
        reader.acknowledge(record)
    reader.close()
    assert steps == list(range(1, 9))


def test_a_clock_that_jumps_back_changes_neither_steps_nor_training(
    watch: Callable[..., Watch], sinks: list[MemorySink], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, real = watch(fetch_steps=2), time.time
    there = AtBatch(batch_3=lambda: monkeypatch.setattr(time, "time", lambda: real() - 1e8))
    small(mine).fit(X, Y, batch_size=2, verbose=0, callbacks=[mine, there])
    assert sinks[0].steps == list(range(1, 9))
    assert sinks[0].ended == "finished"
    assert all(np.isfinite(block.times).all() for block in sinks[0].blocks)


def test_what_breaks_in_the_thread_behind_costs_itself_alone(
    watch: Callable[..., Watch], sinks: list[MemorySink], monkeypatch: pytest.MonkeyPatch
) -> None:
    swallowed: list[str] = []
    monkeypatch.setattr("lossguard.guard.swallow", lambda entry, error: swallowed.append(f"{entry}: {error}"))
    mine = watch(fetch_steps=1)

    def broken() -> None:
        raise OSError("theirs")

    there = AtBatch(
        batch_1=lambda: monkeypatch.setattr(sinks[0], "seal", broken),
        batch_2=lambda: mine._training.saved(),
        batch_3=lambda: monkeypatch.setattr(sinks[0], "event", lambda event: broken()),
        batch_4=lambda: mine.checkpoint("somewhere"),
    )
    small(mine).fit(X, Y, batch_size=2, verbose=0, callbacks=[mine, there])
    assert swallowed == ["Fetcher.do: theirs"] * 2
    assert sinks[0].steps == list(range(1, 9))


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
    model = small(mine)
    for _ in range(2):
        if way == "fit":
            model.fit(X, Y, batch_size=4, verbose=0, callbacks=[mine])
        else:
            with mine:
                for _ in range(4):
                    model.train_on_batch(X, Y)
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
