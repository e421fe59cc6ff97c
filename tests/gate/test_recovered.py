"""Whether a task has come back since its divergence: judged before the export, and blocked where that is not known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from gate_runs import frames_of, healthy, incident

from lossguard.wire.verdict import Check
from lossguard_service.gate.decide import decide
from lossguard_service.gate.facts import Facts
from lossguard_service.gate.policy import DEFAULT, STRICT
from lossguard_service.gate.window import Window, window_of

Edit = Callable[[dict[str, np.ndarray]], None]
ONSET, END = 200, 212
SCAR = replace(incident("micro_divergence", ONSET, end=END), residual=0.6, tasks=("play",))


def scarred(now: Edit | None = None, before: Edit | None = None, tasks: tuple[str, ...] = ("play",)) -> Facts:
    """A healthy export of a run of which an episode left its task 60 % worse."""
    return replace(
        healthy(edit=now),
        incidents=(replace(SCAR, tasks=tasks),),
        before={0: window_of([frames_of(ONSET - 50, ONSET - 1, edit=before)], 1, ONSET - 1)},
    )


def check_of(facts: Facts) -> Check:
    return next(check for check in decide(DEFAULT, facts) if check.name == "recovered_divergences")


def times(**factors: float) -> Edit:
    def edit(values: dict[str, np.ndarray]) -> None:
        for name, factor in factors.items():
            values[name.replace("__", "/")] *= factor

    return edit


def without(name: str) -> Callable[[Window], Window]:
    return lambda window: replace(window, values={k: v for k, v in window.values.items() if k != name})


@pytest.mark.parametrize("tasks", [("play",), ("click",), ("click", "play"), ()])
def test_a_task_that_has_come_back_passes_and_the_check_says_so(tasks: tuple[str, ...]) -> None:
    found = check_of(scarred(tasks=tasks))
    assert (found.status, found.observed) == ("pass", 1)
    assert "left its task 60.0% worse; over the last 50 steps before the export it is back" in found.explanation


@pytest.mark.parametrize(
    ("tasks", "factors", "measure"),
    [
        (("play",), {"loss__play": 1.4}, "the loss of task play is 4"),
        (("play",), {"rmse__play": 1.2}, "the error of task play is 4"),
        (("play",), {"loss": 1.4}, "the total loss is 4"),
        ((), {"loss__click": 1.4}, "the loss of task click is 4"),
        (("click",), {"loss__click": 1.4}, "the loss of task click is 4"),
        (("click",), {"batch_auc__click": 0.91}, "the batch AUC of task click is"),
        # Easier labels make every loss smaller, also that of a model that has lost what it knew.
        (("play",), {"loss__play": 0.5, "label_std__play": 0.7}, "the error of task play is 10"),
        (("click",), {"loss__click": 0.8, "label_mean__click": 0.2}, "the loss of task click is"),
    ],
)
def test_a_task_that_has_not_come_back_is_blocked(
    tasks: tuple[str, ...], factors: dict[str, float], measure: str
) -> None:
    found = check_of(scarred(now=times(**factors), tasks=tasks))
    assert found.status == "block"
    assert measure in found.explanation
    assert "worse than before the onset; the policy allows 30.0%. Train on" in found.explanation
    assert found.observed > 0.3


def test_the_policys_own_limit_and_window_count() -> None:
    worse = scarred(now=times(loss__play=1.2, loss=1.2))
    assert check_of(worse).status == "pass"
    assert "recovered_divergences" in {
        check.name for check in decide(replace(STRICT, recovered_budget=1), worse) if check.status == "block"
    }


@pytest.mark.parametrize("name", ["loss/play", "rmse/play", "label_std/play", "loss"])
def test_a_scalar_that_is_missing_on_one_side_leaves_the_rule_as_it_was(name: str) -> None:
    facts = scarred()
    assert facts.window is not None
    for changed in (
        replace(facts, window=without(name)(facts.window)),
        replace(facts, before={0: without(name)(facts.before[0])}),
    ):
        found = check_of(changed)
        assert (found.status, found.observed) == ("block", 0.6)
        assert "its task ended 60.0% worse" in found.explanation
        assert "cannot be told from the frames" in found.explanation


def spoilt(values: dict[str, np.ndarray]) -> None:
    values["loss/play"][7] = np.nan


def test_what_cannot_be_compared_leaves_the_rule_as_it_was() -> None:
    facts, window = scarred(), scarred().before[0]
    few = incident("micro_divergence", 9, end=20)
    for changed in (
        replace(facts, before={}),
        replace(facts, before={0: window.between(ONSET - 50, ONSET - 2)}),
        replace(facts, before={0: window.only(np.arange(50) != 20)}),
        scarred(before=spoilt),
        scarred(tasks=("play", "unheard_of")),
        replace(facts, window=None),
        replace(facts, incidents=(replace(SCAR, residual=float("inf")),)),
        replace(facts, incidents=(replace(SCAR, residual=float("nan")),)),
        # The window before the export begins within the episode.
        replace(facts, incidents=(replace(SCAR, end_step=352),)),
        replace(
            facts,
            incidents=(replace(few, residual=0.6, tasks=("play",)),),
            before={0: window_of([frames_of(1, 8)], 1, 8)},
        ),
    ):
        found = check_of(changed)
        assert found.status == "block", found.explanation
        assert "waive this check" in found.explanation
    assert check_of(replace(facts, incidents=(replace(SCAR, end_step=351),))).status == "pass"


def test_another_episode_before_the_onset_is_no_level_to_come_back_to() -> None:
    def raised(values: dict[str, np.ndarray]) -> None:
        for name in ("loss/play", "loss"):
            values[name][-30:] *= 1.6

    def squared(values: dict[str, np.ndarray]) -> None:
        raised(values)
        values["rmse/play"][-30:] *= 1.6**0.5

    worse = scarred(now=times(loss__play=1.6, loss=1.6, rmse__play=1.6**0.5), before=squared)
    assert check_of(worse).status == "pass"  # nothing says that those steps were not the task as it was
    first = replace(incident("loss_spike", ONSET - 30, end=ONSET, number=1), tasks=("play",))
    for other in (first, replace(first, end_step=None), replace(first, onset_step=ONSET - 5, first_signal_step=170)):
        assert check_of(replace(worse, incidents=(*worse.incidents, other))).status == "block", other


def test_a_loss_that_fell_steeply_before_the_onset_has_to_come_back_to_where_it_was_last() -> None:
    def falling(values: dict[str, np.ndarray]) -> None:
        slope = np.linspace(3.0, 1.0, 50)
        for name, power in (("loss/play", 1.0), ("loss", 1.0), ("rmse/play", 0.5)):
            values[name] *= slope**power

    assert check_of(scarred(before=falling)).status == "pass"
    left = times(loss__play=1.7, loss=1.7, rmse__play=1.7**0.5)
    assert check_of(scarred(now=left, before=falling)).status == "block"
    assert check_of(scarred(now=left, before=times(loss__play=2.0, loss=2.0, rmse__play=2.0**0.5))).status == "pass"
