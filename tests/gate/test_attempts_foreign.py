"""Exports that are not the checkpoint they are said to be: named attempts to get them published, all at 0."""

from pathlib import Path

import numpy as np
import pytest
from attempts import STEPS, Attempts, Stage
from gate_runs import KERNEL, KERNEL_NORM, Service, make_model

attempt = Attempts()


@pytest.mark.parametrize("name", attempt)
def test_a_foreign_export_is_not_published(name: str, service: Service, tmp_path: Path) -> None:
    attempt.fails(name, service, tmp_path)


def said_of(stage: Stage, model: Path) -> object:
    """The model as the export of a healthy run, whose own export passes."""
    assert {check.name: check.observed for check in stage.good().verdict.checks}["attribution"] == 1
    done = stage.publish(artifact=model)
    assert "attribution" in done.output, done.output
    return done


@attempt
def export_of_another_run(stage: Stage) -> object:
    other = np.random.default_rng(99).normal(scale=1.4, size=KERNEL.shape).astype(np.float32)
    return said_of(stage, make_model(stage.tmp / "other", {"kernel": other}))


@attempt
def export_of_a_much_earlier_step(stage: Stage) -> object:
    stage.trainer().train(STEPS // 3, weight_norm=KERNEL_NORM / 2, stop=None).train(
        STEPS, start=STEPS // 3, weight_norm=KERNEL_NORM
    )
    done = stage.publish(step=STEPS // 3)
    assert "attribution" in done.output, done.output
    assert "at step 64" in done.output
    return done


@attempt
def weights_of_before_the_training(stage: Stage) -> object:
    return said_of(stage, make_model(stage.tmp / "fresh", {"kernel": np.full(KERNEL.shape, 1e-3, np.float32)}))


@attempt
def export_padded_with_many_tensors(stage: Stage) -> object:
    rng = np.random.default_rng(3)
    other = {f"k{n}": rng.normal(size=9).astype(np.float32) for n in range(200)}
    return said_of(stage, make_model(stage.tmp / "padded", {**other, "kernel": KERNEL * np.float32(2)}))


@attempt
def right_norm_only_in_the_optimizers_slots(stage: Stage) -> object:
    tensors = {"kernel": KERNEL * np.float32(3), "optimizer/vars/1": KERNEL}
    return said_of(stage, make_model(stage.tmp / "slots", tensors))


@attempt
def right_weights_scaled_by_a_hair_more_than_rounding(stage: Stage) -> object:
    # The step moves the weights by about 1 of 55; this is three times as far.
    return said_of(stage, make_model(stage.tmp / "scaled", {"kernel": KERNEL * np.float32(1.06)}))
