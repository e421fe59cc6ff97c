"""Broken models: named attempts to get them published, all at 0."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attempts import STEPS, Attempts, Stage
from gate_runs import KERNEL, TASKS, Service, frames_of, make_model
from typer.testing import Result

from lossguard.gate.client import ask, open_client, question_about
from lossguard.wire.chunk import AttemptStart, AttemptStop
from lossguard.wire.frame import Frames

attempt = Attempts()
ORBAX = Path(__file__).resolve().parents[1] / "golden" / "exports" / "orbax"


@attempt
def collapsed_task(stage: Stage) -> object:
    stage.trainer().train(STEPS, collapsed_from=121)
    return stage.publish()


@attempt
def collapsed_in_the_last_steps(stage: Stage) -> object:
    stage.trainer().train(STEPS, collapsed_from=STEPS - 4)
    return stage.publish()


@attempt
def collapsed_before_any_baseline(stage: Stage) -> object:
    stage.trainer().train(STEPS, collapsed_from=5)
    return stage.publish()


@attempt
def nan_loss(stage: Stage) -> object:
    stage.trainer().train(STEPS, nan_from=150)
    return stage.publish()


@attempt
def nan_loss_in_the_last_step_only(stage: Stage) -> object:
    stage.trainer().train(STEPS, nan_from=STEPS)
    return stage.publish()


def spoil(stage: Stage, edit: Callable[[dict[str, np.ndarray]], None]) -> Result:
    stage.trainer().train(STEPS, edit=edit)
    return stage.publish()


@attempt
def infinite_total_loss(stage: Stage) -> object:
    return spoil(stage, lambda v: v["loss"].__setitem__(slice(-2, None), np.inf))


@attempt
def constant_predictions(stage: Stage) -> object:
    return spoil(stage, lambda v: v["prediction_std/click"].fill(0.0))


@attempt
def constant_predictions_of_the_regression(stage: Stage) -> object:
    return spoil(stage, lambda v: v["prediction_std/play"].fill(0.0))


@attempt
def auc_at_chance_with_a_normal_loss(stage: Stage) -> object:
    return spoil(stage, lambda v: v["batch_auc/click"].fill(0.5))


@attempt
def auc_below_chance(stage: Stage) -> object:
    return spoil(stage, lambda v: v["batch_auc/click"].fill(0.3))


@attempt
def loss_worse_than_the_base_rate(stage: Stage) -> object:
    return spoil(stage, lambda v: v["loss/click"].__imul__(1.3))


@attempt
def regression_worse_than_the_mean(stage: Stage) -> object:
    return spoil(stage, lambda v: v["rmse/play"].__imul__(1.5))


def change_stats(stage: Stage, change: Callable[[Frames], None]) -> Result:
    frames = frames_of(1, STEPS)
    change(frames)
    config = {"tasks": TASKS, "parameters_watched": 1.0}
    events = (AttemptStart(0, 1.7e9, config), AttemptStop(STEPS, 1.7e9, "finished"))
    stage.trainer().send(frames, events=events)
    return stage.publish()


@attempt
def nan_weights_behind_a_normal_loss(stage: Stage) -> object:
    return change_stats(stage, lambda frames: frames.stats.__setitem__((slice(-3, None), 1, 0), np.nan))


@attempt
def infinite_gradients_in_the_last_step(stage: Stage) -> object:
    return change_stats(stage, lambda frames: frames.stats.__setitem__((-1, 0, 1), np.inf))


@attempt
def nonfinite_entries_counted_in_the_last_step(stage: Stage) -> object:
    return change_stats(stage, lambda frames: frames.stats.__setitem__((-1, 2, 7), 4.0))


def broken_export(stage: Stage, value: float, dtype: type = np.float32) -> Result:
    stage.trainer().train(STEPS)
    tensor = np.ones(100, dtype)
    tensor[37] = value
    return stage.publish(
        None, STEPS, make_model(stage.tmp / "broken", {"kernel": tensor, "bias": np.ones(3, np.float32)})
    )


@attempt
def export_with_a_nan_tensor(stage: Stage) -> object:
    return broken_export(stage, np.nan)


@attempt
def export_with_an_infinite_tensor(stage: Stage) -> object:
    return broken_export(stage, -np.inf, np.float64)


@attempt
def export_with_a_nan_half_tensor(stage: Stage) -> object:
    return broken_export(stage, np.nan, np.float16)


@attempt
def export_whose_data_is_cut(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    data = stage.model / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:50])
    return stage.publish()


@attempt
def export_whose_index_is_garbage(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    (stage.model / "variables" / "variables.index").write_bytes(b"\xff" * 300)
    return stage.publish()


@attempt
def export_without_variables(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    shutil.rmtree(stage.model / "variables")
    return stage.publish()


@attempt
def export_that_is_an_empty_folder(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    (stage.tmp / "empty").mkdir()
    return stage.publish(None, STEPS, stage.tmp / "empty")


@attempt
def held_out_auc_at_chance(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    (stage.tmp / "metrics.json").write_text('{"auc/click": 0.5}')
    return stage.publish(None, STEPS, None, "--metrics", stage.tmp / "metrics.json")


@attempt
def held_out_auc_is_nan(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    (stage.tmp / "metrics.json").write_text('{"auc/click": NaN}')
    return stage.publish(None, STEPS, None, "--metrics", stage.tmp / "metrics.json")


@attempt
def held_out_metric_is_infinite(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    (stage.tmp / "metrics.json").write_text('{"rmse/play": "Infinity"}')
    return stage.publish(None, STEPS, None, "--metrics", stage.tmp / "metrics.json")


@attempt
def worse_than_the_last_passed_export(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    with open_client(stage.service.url) as client:
        other = make_model(stage.tmp / "other", {"kernel": KERNEL, "bias": np.ones(5, np.float32)})
        ask(client, question_about(other, "default", stage.name, STEPS, metrics={"auc/click": 0.70}))
    (stage.tmp / "metrics.json").write_text('{"auc/click": 0.62}')
    return stage.publish(None, STEPS, None, "--metrics", stage.tmp / "metrics.json")


@attempt
def updates_that_are_nan_behind_sound_weights(stage: Stage) -> object:
    return change_stats(stage, lambda frames: frames.stats.__setitem__((-1, 1, 2), np.nan))


def weights_file(stage: Stage, **tensors: np.ndarray) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(stage.tmp / "ranker.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 2), np.float32)
        for name, tensor in tensors.items():
            file[name.replace("__", "/")] = tensor
    return stage.tmp / "ranker.weights.h5"


@attempt
def weights_file_with_a_nan(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    return stage.publish(None, STEPS, weights_file(stage, layers__bias=np.array([np.nan])))


@attempt
def weights_file_whose_slots_are_infinite(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    return stage.publish(None, STEPS, weights_file(stage, optimizer__vars__2=np.array([np.inf])))


@attempt
def weights_behind_a_link_out_of_the_file(stage: Stage) -> object:
    h5py = pytest.importorskip("h5py")
    stage.trainer().train(STEPS)
    path = weights_file(stage)
    with h5py.File(stage.tmp / "other.h5", "w") as other:
        other["kernel"] = np.full(3, np.nan)
    with h5py.File(path, "a") as file:
        file["layers/linked"] = h5py.ExternalLink("other.h5", "kernel")
    return stage.publish(None, STEPS, path)


@attempt
def orbax_checkpoint_with_nan_weights(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    return stage.publish(None, STEPS, ORBAX / "nan_plain")


@attempt
def orbax_checkpoint_with_a_nan_slot(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    return stage.publish(None, STEPS, ORBAX / "nan_slot")


@attempt
def orbax_checkpoint_with_a_chunk_missing(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    shutil.copytree(ORBAX / "nan_plain", stage.tmp / "orbax")
    for broken in ("params.dense.kernel", "params.dense.bias"):
        for chunk in (stage.tmp / "orbax" / broken).glob("[0-9]*"):
            chunk.unlink()
    return stage.publish(None, STEPS, stage.tmp / "orbax")


@attempt
def orbax_checkpoint_that_was_never_merged(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    shutil.copytree(ORBAX / "good", stage.tmp / "orbax")
    (stage.tmp / "orbax" / "manifest.ocdbt").unlink()
    return stage.publish(None, STEPS, stage.tmp / "orbax")


def after_a_good_version(stage: Stage, metrics: dict[str, float]) -> None:
    """Another run of the model passes with these metrics; then this run trains."""
    config = {"tasks": TASKS, "parameters_watched": 1.0, "model": stage.name}
    stage.service.trainer(f"{stage.name}-before", config=config).train(STEPS)
    with open_client(stage.service.url) as client:
        other = make_model(stage.tmp / "other", {"kernel": KERNEL, "bias": np.ones(5, np.float32)})
        answer = ask(client, question_about(other, "default", f"{stage.name}-before", STEPS, metrics=metrics))
    assert answer.verdict.outcome == "pass", answer.verdict.reasons
    stage.trainer(config=config).train(STEPS)


@attempt
def worse_than_the_last_version_from_another_run(stage: Stage) -> object:
    after_a_good_version(stage, {"auc/click": 0.70})
    (stage.tmp / "metrics.json").write_text('{"auc/click": 0.62}')
    return stage.publish(None, STEPS, None, "--metrics", stage.tmp / "metrics.json")


@attempt
def larger_error_than_the_last_version(stage: Stage) -> object:
    after_a_good_version(stage, {"rmse/play": 4.0})
    (stage.tmp / "metrics.json").write_text('{"rmse/play": 4.4}')
    return stage.publish(None, STEPS, None, "--metrics", stage.tmp / "metrics.json")


@attempt
def worse_metric_left_out(stage: Stage) -> object:
    after_a_good_version(stage, {"auc/click": 0.70})
    return stage.publish()


@attempt
def lucky_trial_of_a_configuration_that_diverges(stage: Stage) -> object:
    config = {"tasks": TASKS, "parameters_watched": 1.0, "trials": stage.name}
    for seed in range(3):
        stage.service.trainer(f"{stage.name}-{seed}", config=config).train(STEPS, seed=seed, collapsed_from=100)
    stage.trainer(config=config).train(STEPS)
    return stage.publish()


@pytest.mark.parametrize("name", sorted(attempt))
def test_nothing_gets_published(name: str, service: Service, tmp_path: Path) -> None:
    attempt.fails(name, service, tmp_path)
