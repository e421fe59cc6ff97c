"""Blow-ups in the first steps, before anything was learned: which models they ruined."""

import numpy as np
import pytest

from lossguard.detect import monitor
from lossguard.wire.frame import Frames, Schema

TASKS = {"click": 0.44, "long_view": 0.31, "finish": 0.16, "like": 0.017}


def blown(learns: tuple[str, ...], *, seed: int, frames: int = 300) -> Frames:
    """Four binary tasks whose losses leave for some steps from step 2 on; those named learn nevertheless.

    Batches of 512: the AUC of a task with a base rate of 1.7 % has a noise of a tenth.
    """
    rng = np.random.default_rng(seed)
    t = np.arange(frames)
    wave = np.where(t >= 1, 1e4 * np.exp(-(t - 1) / 0.5), 0.0)
    columns: dict[str, np.ndarray] = {"learning_rate": np.full(frames, 0.1)}
    for task, rate in TASKS.items():
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        skill = (1 - np.exp(-t / 40)) if task in learns else np.zeros(frames)
        noise = 0.3 / np.sqrt(512 * rate)
        columns[f"loss/{task}"] = entropy * (1 - 0.05 * skill + 0.01 * rng.standard_normal(frames) + wave)
        columns[f"batch_auc/{task}"] = np.clip(0.5 + 0.15 * skill + noise * rng.standard_normal(frames), 0, 1)
        columns[f"label_mean/{task}"] = np.full(frames, rate)
    columns["loss"] = sum(columns[f"loss/{task}"] for task in TASKS)
    return Frames.of(Schema(tuple(columns)), t + 1, np.stack(list(columns.values()), 1))


def status(frames: Frames) -> str:
    state = monitor.init(dict.fromkeys(TASKS, "binary"))
    return monitor.report(monitor.update(state, frames), "start-up").status


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("learns", [(), ("finish",)], ids=["nothing", "the easy task"])
def test_a_model_that_learns_nothing_or_only_the_easy_task_after_a_blow_up_is_lost(
    learns: tuple[str, ...], seed: int
) -> None:
    assert status(blown(learns, seed=seed)) == "diverged"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "learns", [tuple(TASKS), ("click", "long_view", "finish")], ids=["all", "all but the rare one"]
)
def test_a_model_that_learns_most_tasks_after_a_blow_up_is_not_lost(learns: tuple[str, ...], seed: int) -> None:
    assert status(blown(learns, seed=seed)) != "diverged"
