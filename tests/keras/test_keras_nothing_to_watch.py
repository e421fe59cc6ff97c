"""Optimizers without a variable and watches without a layer: what is left is recorded, and one sentence says so."""

import logging
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from conftest import MemorySink
from lossguard.detect import monitor
from lossguard.journal.reader import AttemptReader
from lossguard.keras import Watch
from lossguard.recorder import Recorder
from lossguard.wire.chunk import decode


def fit(mine: Watch, optimizer: keras.optimizers.Optimizer, *, times: int = 1) -> keras.Model:
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="hidden"), keras.layers.Dense(1, name="head")], name="net"
    )
    model.compile(optimizer, loss="mse")
    for _ in range(times):
        model.fit(np.ones((12, 3)), np.ones((12, 1)), batch_size=2, verbose=0, callbacks=[mine])
    return model


@pytest.mark.parametrize("pattern", ["head.*", ".*"], ids=["matches nothing", "leaves nothing"])
def test_an_optimizer_to_which_no_variable_falls_is_let_go_and_all_the_rest_is_recorded(
    watch: Callable[..., Watch], sinks: list[MemorySink], caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    mine, matched, other = watch(), keras.optimizers.SGD(0.01, name="matched"), keras.optimizers.Adagrad(name="other")
    idle = matched if pattern == "head.*" else other
    with caplog.at_level(logging.WARNING, "lossguard"):
        both = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(other, {pattern: matched}))
        fit(mine, both, times=2)
    assert [len(sink.steps) for sink in sinks] == [6, 6]
    for sink in sinks:
        assert sink.blocks[0].schema.layers == (
            "net/hidden/kernel",
            "net/hidden/bias",
            "net/head/kernel",
            "net/head/bias",
        )
        assert {"loss", "learning_rate"} < set(sink.blocks[0].schema.scalars)
        assert sink.options["config"]["parameters_watched"] == 1.0
    (warning,) = caplog.messages
    assert warning.startswith(f"Lossguard: {idle.name} has no variable to update and is not watched; the pattern of a")
    assert not {"_backend_update_step", "save_own_variables"} & idle.__dict__.keys()
    mine.detach()


def test_with_every_layer_left_out_the_scalars_are_in_the_journal_and_are_judged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    several = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.01), {".*head.*": keras.optimizers.Adagrad()})
    for run, optimizer in (("one", keras.optimizers.SGD(0.01)), ("two", keras.optimizers.MultiOptimizer(several))):
        caplog.clear()
        mine = Watch("ads", run, journal=tmp_path, unwatched=(".*",), open_recorder=Recorder)
        with caplog.at_level(logging.WARNING, "lossguard"):
            fit(mine, optimizer)
        (warning,) = caplog.messages
        assert "no layer is watched (unwatched= leaves all of them out): the scalars of each step" in warning
        (folder,) = [entry for entry in (tmp_path / "ads" / run).iterdir() if entry.is_dir()]
        reader, frames, state = AttemptReader(folder), [], monitor.init()
        while (record := reader.next()) is not None:
            frames += [block] if len(block := decode(record.chunk).frames) else []
            state = monitor.update(state, block)
            reader.acknowledge(record)
        reader.close()
        assert monitor.report(state, run).steps == (1, 6)
        assert [int(step) for block in frames for step in block.steps] == [1, 2, 3, 4, 5, 6]
        for block in frames:
            assert block.schema.layers == ()
            assert "loss" in block.schema.scalars
            assert np.isfinite(block.scalars[:, block.schema.scalars.index("loss")]).all()
