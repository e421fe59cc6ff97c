"""Stability over trials: which runs are trials of one configuration, and what they say about it."""

from dataclasses import replace
from typing import Any

import pytest
from gate_runs import TASKS, Service, frames_of, healthy

from lossguard.wire.chunk import AttemptStart
from lossguard.wire.verdict import Check
from lossguard_service.gate.facts import Trial
from lossguard_service.gate.policy import DEFAULT, STRICT, Policy
from lossguard_service.gate.stability import stability_checks
from lossguard_service.store.trials import configuration


def trials(*diverged: bool, finals: tuple[float, ...] = (), last: int = 400) -> tuple[Trial, ...]:
    values = finals or (0.67,) * len(diverged)
    return tuple(
        Trial(f"trial-{n}", bad, True, last, {"batch_auc/click": value})
        for n, (bad, value) in enumerate(zip(diverged, values, strict=True))
    )


def judged(policy: Policy, *found: Trial) -> dict[str, Check]:
    return {check.name: check for check in stability_checks(policy, replace(healthy(400), trials=found))}


def test_where_there_are_no_trials_the_check_says_that_it_does_not_apply() -> None:
    for found in ((), trials(False), trials(False, False)):
        (check,) = judged(DEFAULT, *found).values()
        assert (check.name, check.status) == ("trials", "pass")
        assert "Does not apply" in check.explanation
    assert judged(replace(DEFAULT, name="mine", trials_minimum=0), *trials(True, True, True)) == {}


@pytest.mark.parametrize(
    ("policy", "bad", "good", "status"),
    [(DEFAULT, 0, 3, "pass"), (DEFAULT, 2, 4, "pass"), (DEFAULT, 5, 1, "block"), (DEFAULT, 3, 0, "block"),
     (STRICT, 0, 6, "pass"), (STRICT, 1, 5, "pass"), (STRICT, 3, 3, "block")],
)  # fmt: skip
def test_a_configuration_that_clearly_diverges_too_often_blocks(
    policy: Policy, bad: int, good: int, status: str
) -> None:
    check = judged(policy, *trials(*(True,) * bad, *(False,) * good))["trial_divergences"]
    assert check.status == status
    assert f"{bad} of {bad + good} trainings" in check.explanation
    assert "95 % interval" in check.explanation
    assert ("trial-0" in check.explanation) == (bad > 0)


def test_final_values_that_clearly_spread_too_far_block() -> None:
    spread = judged(DEFAULT, *trials(*(False,) * 5, finals=(0.52, 0.60, 0.66, 0.70, 0.74)))[
        "trial_spread/batch_auc/click"
    ]
    assert spread.status == "block"
    assert "from 0.52 to 0.74" in spread.explanation
    # Three values of the same standard deviation say less.
    few = judged(
        replace(DEFAULT, name="mine", trial_spread_limit=0.06), *trials(*(False,) * 3, finals=(0.56, 0.64, 0.72))
    )
    assert few["trial_spread/batch_auc/click"].status == "pass"
    even = judged(STRICT, *trials(*(False,) * 5, finals=(0.669, 0.670, 0.671, 0.670, 0.672)))
    assert even["trial_spread/batch_auc/click"].status == "pass"


def test_what_goes_on_or_was_given_up_early_is_no_trial_and_other_lengths_are_not_compared() -> None:
    going = replace(trials(False)[0], ended=False)
    early = trials(False, last=100)[0]
    assert judged(DEFAULT, going, early, *trials(False, False))["trials"].observed == 2
    assert judged(DEFAULT, replace(going, diverged=True), *trials(False, False))["trial_divergences"].status == "pass"
    longer = trials(False, False, last=4000)
    assert "trial_spread/batch_auc/click" not in judged(DEFAULT, *trials(False, False), *longer)


def test_seeds_versions_and_rollbacks_do_not_make_another_configuration_and_the_optimizer_does() -> None:
    base: dict[str, Any] = {"optimizer": {"class": "Adam", "learning_rate": 0.1}, "tasks": TASKS}
    same = base | {"seed": 3, "data_seed": 4, "versions": {"keras": "3"}, "rollbacks": [1]}
    assert configuration(same) == configuration(base) is not None
    assert configuration(base | {"optimizer": {"class": "Adam", "learning_rate": 0.2}}) != configuration(base)
    assert configuration({"tasks": TASKS}) is None
    assert configuration(base | {"trials": "nightly"}) == configuration({"trials": "nightly"})
    assert configuration({"optimizer": {"name": "\ud800", "epsilon": float("nan")}}) is not None


def test_the_service_finds_the_trials_of_a_run_and_names_those_that_diverged(service: Service) -> None:
    config = {"tasks": TASKS, "parameters_watched": 1.0, "optimizer": {"class": "Adam"}, "model": "stability"}
    for seed in range(4):
        trainer = service.trainer(f"trial-{seed}", project="stability", config=config | {"seed": seed})
        trainer.train(192, seed=seed, **({"collapsed_from": 100} if seed < 3 else {}))
    other = service.trainer("other", project="stability", config=config | {"optimizer": {"class": "Adagrad"}})
    other.send(frames_of(1, 64), events=(AttemptStart(0, 1.7e9, other.config),))
    scan = {"kind": "savedmodel", "tensors": 3, "values": 10, "nonfinite": {}, "complete": True}
    body = {
        "project": "stability",
        "run": "trial-3",
        "step": 192,
        "artifact_digest": "sha256:" + "5" * 64,
        "scan": scan,
    }
    for _ in range(2):  # the second time from memory
        checks = {check["name"]: check for check in service.client.post("/v1/verdicts", json=body).json()["checks"]}
        found = checks["trial_divergences"]
        assert (found["status"], found["observed"]) == ("block", 0.75)
        assert all(f"trial-{seed}" in found["explanation"] for seed in range(3))
