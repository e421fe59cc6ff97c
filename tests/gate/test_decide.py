"""The decision, on facts alone."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gate_runs import BLOWUP, DIGEST, healthy, incident

from lossguard.wire.incident import KINDS
from lossguard.wire.numbers import canonical_json, to_json
from lossguard.wire.verdict import Check, Verdict, outcome_of
from lossguard_service.gate.decide import decide
from lossguard_service.gate.facts import Attempt, Canary, Drops, Facts, Previous, Scan, Span, Trial, Window
from lossguard_service.gate.judge import verdict_of
from lossguard_service.gate.policy import DEFAULT, STRICT, Policy, PolicyError
from lossguard_service.gate.waive import FAMILIES, NAMES, NEVER


def failing(facts: Facts, policy: Policy = DEFAULT) -> dict[str, Check]:
    return {check.name: check for check in decide(policy, facts) if check.status != "pass"}


def test_a_healthy_export_passes_and_says_what_was_looked_at() -> None:
    checks = decide(DEFAULT, healthy())
    assert outcome_of(checks) == "pass"
    names = [check.name for check in checks]
    assert names[:10] == [
        "artifact_digest", "run_known", "step_reached", "telemetry_complete", "judged", "recent", "coverage",
        "no_open_incident", "recovered_divergences", "quiet_period",
    ]  # fmt: skip
    assert {"batch_auc/click", "normalized_entropy/click", "prediction_spread/play"} <= set(names)


def test_every_check_there_is_has_a_name_that_a_waiver_may_use() -> None:
    every = replace(STRICT, canary_required=True, trials_minimum=1)
    trials = tuple(Trial(f"r{n}", False, True, 400, {"batch_auc/click": 0.6 + n / 100}) for n in range(3))
    facts = replace(healthy(), metrics={"auc/click": 0.7}, previous={"auc/click": BEFORE}, trials=trials)
    changes: list[dict[str, Any]] = [{}, {"window": None}, {"trials": ()}, {"scan": None}, {"run_known": False}]
    changes += [{"tasks": {}, "window": Window(healthy(edit=None).window.between(301, 400).steps, {}, {})}]  # type: ignore[union-attr]
    changes += [{"tasks": {"other": "binary"}}]
    names = {check.name for change in changes for check in decide(every, replace(facts, **change))}
    assert {"quality_window", "tasks_known", "quality/other", "trials", "canary", "metric:auc/click"} <= names
    for name in names - set(NEVER):
        assert name in NAMES or name.startswith(FAMILIES), name


def test_an_unknown_run_is_insufficient_data_and_nothing_else_is_claimed() -> None:
    facts = Facts("default", "nobody", 10, healthy().artifact_digest)
    checks = decide(DEFAULT, facts)
    assert outcome_of(checks) == "insufficient_data"
    assert "never heard of run nobody" in checks[-1].explanation


BEFORE = Previous(0.66, "c" * 32, "monday", 900)


@pytest.mark.parametrize(
    ("change", "check", "status", "words"),
    [
        ({"artifact_digest": "sha256:abc"}, "artifact_digest", "block", "not a SHA-256"),
        ({"artifact_digest": ""}, "artifact_digest", "block", "not a SHA-256"),
        ({"step": 0}, "step_reached", "block", "count from 1"),
        ({"step": -5}, "step_reached", "block", "count from 1"),
        ({"step": 401}, "step_reached", "insufficient_data", "has reached step 400"),
        ({"attempts": ()}, "step_reached", "insufficient_data", "has reached step 0"),
        ({"spans": ()}, "telemetry_complete", "insufficient_data", "steps 1 to 400"),
        ({"spans": (Span(1, 1, 100), Span(1, 102, 400))}, "telemetry_complete", "insufficient_data", "step 101"),
        ({"spans": (Span(1, 2, 400),)}, "telemetry_complete", "insufficient_data", "step 1"),
        ({"spans": (Span(1, 1, 399),)}, "telemetry_complete", "insufficient_data", "step 400"),
        ({"spans": (Span(1, 1, 300), Span(1, 250, 400))}, "telemetry_complete", "insufficient_data", "twice"),
        ({"drops": (Drops(1, 65, {"queue_full": 3}),)}, "telemetry_complete", "insufficient_data", "3 (queue_full)"),
        ({"judged_step": 399}, "judged", "insufficient_data", "up to step 399"),
        ({"judged_step": None}, "judged", "insufficient_data", "up to step 0"),
        ({"parameters_watched": None}, "coverage", "insufficient_data", "did not say"),
        ({"parameters_watched": 0.5}, "coverage", "insufficient_data", "50.0%"),
        ({"parameters_watched": 1.5}, "coverage", "insufficient_data", "150.0%"),
        ({"parameters_watched": float("nan")}, "coverage", "insufficient_data", "nan"),
        ({"window": None}, "quality_window", "insufficient_data", "holds 0 of them"),
        ({"attempt": "f" * 32}, "step_reached", "insufficient_data", "knows nothing"),
        ({"metrics": {"auc/click": 0.5}}, "metric:auc/click", "block", "no better than chance"),
        ({"metrics": {"auc/click": float("nan")}}, "metric:auc/click", "block", "NaN or Inf"),
        ({"metrics": {"ndcg": float("inf")}}, "metric:ndcg", "block", "NaN or Inf"),
        ({"metrics": {"auc/click": 67.0}}, "metric:auc/click", "block", "per cent"),
        ({"metrics": {"auc/click": 0.6}, "previous": {"auc/click": BEFORE}}, "metric_not_worse:auc/click",
         "block", "step 900 of run monday"),
        ({"previous": {"auc/click": BEFORE}}, "metric_not_worse:auc/click", "insufficient_data", "comes without"),
        ({"metrics": {"rmse/play": 0.7}, "previous": {"rmse/play": BEFORE}}, "metric_not_worse:rmse/play",
         "block", "5% more"),
        ({"metrics": {"auc/click": float("nan")}, "previous": {"auc/click": BEFORE}}, "metric_not_worse:auc/click",
         "block", "0.6600"),
        ({"scan": Scan("keras", 3, 10, {}, complete=True, slots=2, nonfinite_slots={"optimizer/vars/2": 1})},
         "slots_finite", "block", "optimizer/vars/2 (1)"),
        ({"tasks": {"click": "binary", "share": "binary"}}, "quality/share", "insufficient_data", "task share"),
        ({"tasks": {"click": "binary", "rank": "listwise"}}, "quality/rank", "insufficient_data", "task rank"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_missing_never_passes(change: dict[str, Any], check: str, status: str, words: str) -> None:
    found = failing(replace(healthy(), **change))
    assert found[check].status == status
    assert words in found[check].explanation


def test_the_slots_are_judged_by_the_updates_and_by_what_the_artifact_holds_of_them() -> None:
    facts = healthy()
    assert facts.window is not None
    assert facts.window.updates_measured
    broken = replace(facts.window, nonfinite_updates=("click/dense/kernel",))
    found = failing(replace(facts, window=broken))["slots_finite"]
    assert (found.status, "click/dense/kernel" in found.explanation) == ("block", True)
    unmeasured = replace(facts, window=replace(facts.window, updates_measured=False))
    assert "slots_finite" not in {check.name for check in decide(DEFAULT, unmeasured)}
    wanted = replace(DEFAULT, name="mine", slots_required=True)
    unknown = {check.name: check for check in decide(wanted, unmeasured)}["slots_finite"]
    assert unknown.status == "insufficient_data"
    held = replace(unmeasured, scan=Scan("keras", 3, 10, {}, complete=True, slots=2))
    assert {check.name: check.status for check in decide(wanted, held)}["slots_finite"] == "pass"
    cut = replace(unmeasured, scan=Scan("keras", 3, 10, {}, complete=False, slots=2))
    assert {check.name: check.status for check in decide(wanted, cut)}["slots_finite"] == "insufficient_data"


def test_silence_counts_unless_the_training_ended_in_good_order() -> None:
    running = (Attempt(1, "a" * 32, 0, 400),)
    assert failing(replace(healthy(), attempts=running, silent_seconds=60.0)) == {}
    silent = failing(replace(healthy(), attempts=running, silent_seconds=7200.0))
    assert "nothing was heard from it for 7200 s" in silent["recent"].explanation
    assert failing(replace(healthy(), silent_seconds=7200.0)) == {}
    failed = (Attempt(1, "a" * 32, 0, 400, "failed"),)
    assert "exception at step 400" in failing(replace(healthy(), attempts=failed))["recent"].explanation


def test_a_full_divergence_blocks_with_task_step_layer_and_what_to_do() -> None:
    facts = replace(healthy(), incidents=(BLOWUP,), good_checkpoint=(200, "ckpt-200"))
    check = failing(facts)["no_open_incident"]
    assert check.status == "block"
    for word in ("click", "step 213", "shared/dense_1/kernel", "step 211", "ckpt-200", "Clippy", "base rate"):
        assert word in check.explanation, word


def test_an_incident_after_the_exports_step_does_not_count() -> None:
    later = replace(BLOWUP, onset_step=401, first_signal_step=399)
    assert failing(replace(healthy(), incidents=(later,))) == {}
    assert "no_open_incident" in failing(replace(healthy(), incidents=(later,)), replace(STRICT, settle_steps=0))


def test_an_incident_that_ended_after_the_step_was_open_at_it() -> None:
    during = incident("micro_divergence", 390, end=420)
    assert failing(replace(healthy(), incidents=(during,)))["no_open_incident"].status == "block"


def test_recovered_divergences_need_a_budget_a_small_residual_and_a_quiet_period() -> None:
    calm = incident("micro_divergence", 100, end=130)
    assert failing(replace(healthy(), incidents=(calm,))) == {}
    many = tuple(incident("micro_divergence", 100 + 20 * i, end=110 + 20 * i, number=i) for i in range(6))
    assert failing(replace(healthy(), incidents=many))["recovered_divergences"].observed == 6
    scar = replace(calm, residual=0.4)
    assert "40.0% worse" in failing(replace(healthy(), incidents=(scar,)))["recovered_divergences"].explanation
    unknown = replace(calm, residual=float("nan"))
    assert "recovered_divergences" in failing(replace(healthy(), incidents=(unknown,)))
    fresh = incident("micro_divergence", 350, end=370)
    assert "after step 420" in failing(replace(healthy(), incidents=(fresh,)))["quiet_period"].explanation


@pytest.mark.parametrize("kind", ["nonfinite", "no_update", "full_divergence", "micro_divergence"])
def test_every_breaking_kind_blocks_while_it_is_open(kind: str) -> None:
    assert "no_open_incident" in failing(replace(healthy(), incidents=(incident(kind, 300),)))


def test_every_kind_of_incident_can_be_explained() -> None:
    policy = replace(DEFAULT, name="all", blocking_kinds=KINDS)
    for kind in KINDS:
        text = failing(replace(healthy(), incidents=(incident(kind, 300),)), policy)["no_open_incident"].explanation
        assert kind.replace("_", " ") in text


def test_a_restart_supersedes_what_the_older_attempt_did_after_it() -> None:
    attempts = (Attempt(1, "a" * 32, 0, 600), Attempt(2, "b" * 32, 300, 400, "finished"))
    facts = replace(healthy(), attempts=attempts, spans=(Span(1, 1, 600), Span(2, 301, 400)))
    assert failing(facts) == {}
    assert failing(replace(facts, attempt="b" * 32)) == {}
    assert "restarted since" in failing(replace(facts, attempt="a" * 32))["step_reached"].explanation
    assert failing(replace(facts, step=300, attempt="a" * 32, window=healthy(300).window)) == {}
    beyond = failing(replace(facts, step=500))["step_reached"]
    assert "restarted from step 300" in beyond.explanation
    unplaced = replace(facts, attempts=(*attempts, Attempt(3, "c" * 32, None, None)))
    assert "Attempt 3 has begun" in failing(unplaced)["telemetry_complete"].explanation


def test_a_gap_in_the_older_attempt_counts_up_to_the_restart_only() -> None:
    attempts = (Attempt(1, "a" * 32, 0, 600), Attempt(2, "b" * 32, 300, 400, "finished"))
    facts = replace(healthy(), attempts=attempts)
    after = (Span(1, 1, 320), Span(1, 330, 600), Span(2, 301, 400))
    assert failing(replace(facts, spans=after)) == {}
    before = (Span(1, 1, 280), Span(1, 290, 600), Span(2, 301, 400))
    assert "steps 281 to 289" in failing(replace(facts, spans=before))["telemetry_complete"].explanation


def collapsed(values: dict[str, np.ndarray]) -> None:
    values["batch_auc/click"][:] = 0.5
    values["loss/click"][:] = 0.686


def test_what_a_collapse_began_with_is_a_divergence_and_no_event_of_the_run() -> None:
    event = replace(incident("regime_change", 250, end=251, number=1), tasks=())
    facts = replace(healthy(edit=collapsed), incidents=(BLOWUP, event))
    explanation = failing(facts)["batch_auc/click"].explanation
    assert (
        f"began with the full divergence at step {BLOWUP.onset_step}, where layer {BLOWUP.first_layer}" in explanation
    )


@pytest.mark.parametrize(
    ("edit", "check", "words"),
    [
        (collapsed, "batch_auc/click", "has collapsed"),
        (lambda v: v["loss/click"].__imul__(1.2), "normalized_entropy/click", "worse than its base rate"),
        (lambda v: v["prediction_mean/click"].__imul__(1.8), "calibration/click", "80% too high"),
        (lambda v: v["prediction_mean/click"].__imul__(0.3), "calibration/click", "70% too low"),
        (lambda v: v["prediction_std/click"].fill(1e-8), "prediction_spread/click", "as good as constant"),
        (lambda v: v["prediction_std/play"].fill(0.0), "prediction_spread/play", "as good as constant"),
        (lambda v: v["rmse/play"].__imul__(1.3), "error_ratio/play", "worse than the mean"),
        (
            lambda v: v["loss/click"].__setitem__(-1, np.nan),
            "finite",
            "the last one before the export, loss/click is nan",
        ),
        (lambda v: v["loss"].__setitem__(-3, np.inf), "finite", "loss is inf"),
        (lambda v: v["batch_auc/click"].__setitem__(-1, np.nan), "finite", "batch_auc/click is nan"),
    ],
)
def test_a_broken_task_blocks_even_without_an_incident(edit: Any, check: str, words: str) -> None:
    found = failing(healthy(edit=edit))
    assert found[check].status == "block"
    assert words in found[check].explanation


def test_a_batch_of_one_class_has_no_auc_and_that_is_no_fault() -> None:
    def one_class(values: dict[str, np.ndarray]) -> None:
        values["batch_auc/click"][-1], values["label_mean/click"][-1], values["loss/click"][-1] = np.nan, 0.0, 0.3

    assert failing(healthy(edit=one_class)) == {}


def test_a_rare_task_whose_loss_is_noisy_is_judged_by_its_ranking() -> None:
    def rare(values: dict[str, np.ndarray]) -> None:
        wobble = np.random.default_rng(3).normal(1.0, 0.3, len(values["loss/click"])).clip(0.2)
        values["label_mean/click"][:] = 0.017 * wobble
        values["prediction_mean/click"][:] = 0.018
        values["loss/click"][:] = 0.0861 * 1.02 * wobble * np.random.default_rng(4).normal(1, 0.1, len(wobble))

    assert failing(healthy(edit=rare)) == {}


def test_supplied_metrics_stand_in_for_a_task_that_logs_nothing() -> None:
    facts = replace(healthy(), tasks={"click": "binary", "share": "binary", "play": "regression"})
    assert "quality/share" in failing(facts)
    assert failing(replace(facts, metrics={"auc/share": 0.7})) == {}


def test_nan_in_the_last_weights_blocks_though_the_loss_looks_normal() -> None:
    facts = healthy()
    assert facts.window is not None
    window = replace(facts.window, nonfinite_layers=("shared/dense_1/kernel",))
    check = failing(replace(facts, window=window))["finite"]
    assert check.status == "block"
    assert "shared/dense_1/kernel" in check.explanation


@pytest.mark.parametrize(
    ("scan", "status", "words"),
    [
        (None, "insufficient_data", "Nobody looked"),
        (Scan("savedmodel", 3, 10, {}, complete=False, note="cut off"), "insufficient_data", "cut off"),
        (Scan("savedmodel", 0, 0, {}, complete=True), "insufficient_data", "no tensors of floats"),
        (Scan("savedmodel", 3, 10, {"kernel": 2}, complete=True), "block", "kernel (2)"),
        (Scan("savedmodel", 3, 10, {"kernel": 2}, complete=False), "block", "kernel (2)"),
    ],
)
def test_an_artifact_that_is_not_known_to_be_finite_does_not_pass(scan: Any, status: str, words: str) -> None:
    check = failing(replace(healthy(), scan=scan))["artifact_finite"]
    assert (check.status, words in check.explanation) == (status, True)
    relaxed = failing(replace(healthy(), scan=scan), replace(DEFAULT, name="mine", scan_required=False))
    assert ("artifact_finite" in relaxed) == (status == "block" or (scan is not None and scan.complete))


@pytest.mark.parametrize(
    ("canary", "status"),
    [
        (None, "insufficient_data"),
        (Canary(0, 0, 0.0), "insufficient_data"),
        (Canary(1, 0, 0.0), "insufficient_data"),
        (Canary(8, 1, 0.3), "block"),
        (Canary(8, 0, 0.0), "block"),
        (Canary(8, 0, float("nan")), "block"),
        (Canary(8, 0, 0.3, "it does not load"), "block"),
    ],
)
def test_a_model_that_does_not_answer_its_canary_does_not_pass(canary: Any, status: str) -> None:
    policy = replace(DEFAULT, name="mine", canary_required=True)
    assert failing(replace(healthy(), canary=canary), policy)["canary"].status == status
    assert failing(replace(healthy(), canary=Canary(8, 0, 0.3)), policy) == {}


def test_strict_wants_what_default_does_without() -> None:
    facts = healthy(600)
    assert set(failing(facts, STRICT)) == {"metric:auc/click"}
    assert failing(replace(facts, metrics={"auc/click": 0.66}), STRICT) == {}


def test_decisions_are_reproducible_and_fit_into_json() -> None:
    facts = replace(healthy(), incidents=(BLOWUP,), metrics={"auc/click": float("nan")})
    first, second = (json.dumps(to_json([check.__reduce_ex__(2)[2] for check in decide(DEFAULT, facts)]), default=str)
                     for _ in range(2))  # fmt: skip
    assert first == second
    assert "NaN" in first


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quality_steps": 0}, "quality_steps"),
        ({"batch_auc_floor": 0.3}, "batch_auc_floor"),
        ({"minimum_coverage": float("nan")}, "minimum_coverage"),
        ({"blocking_kinds": ["micro_divergence"]}, "must be among them"),
        ({"blocking_kinds": ["tired"]}, "unknown kind"),
        ({"blocking_kinds": "full_divergence"}, "must be a list"),
        ({"auc_floor": 0.6}, "no such rule"),
        ({"scan_required": 1}, "true or false"),
        ({"version": 1.5}, "whole number"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_its_field(change: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        Policy.from_json({"name": "mine", "version": 1} | change)


def test_a_policy_survives_json() -> None:
    assert Policy.from_json(json.loads(STRICT.dumps())) == STRICT


def test_checks_say_where_their_evidence_can_be_looked_at() -> None:
    facts = replace(
        healthy(),
        project="a b",
        metrics={"auc/click": 0.6},
        previous={"auc/click": Previous(0.7, "f" * 32, "older/one", 900)},
        trials=tuple(Trial(f"t{n}", False, True, 400) for n in range(3)),
    )
    found = {one.name: one.evidence for one in verdict_of(DEFAULT, facts, verdict_id="1", now=1.0).checks}
    assert found["no_open_incident"] == "/runs/a%20b/ranker#incidents"
    assert found["batch_auc/click"] == "/runs/a%20b/ranker#tasks"
    assert found["metric_not_worse:auc/click"] == f"/runs/a%20b/older%2Fone#verdict-{'f' * 32}"
    assert found["trial_divergences"] == "/compare?run=a+b%2Ft0&run=a+b%2Ft1&run=a+b%2Ft2"
    assert found["artifact_finite"] == ""
    unknown = verdict_of(DEFAULT, replace(facts, run_known=False), verdict_id="1", now=1.0)
    assert {one.evidence for one in unknown.checks} == {""}


def test_a_verdict_that_was_signed_before_checks_had_evidence_has_the_bytes_that_were_signed() -> None:
    check = {"name": "coverage", "status": "pass", "observed": 1, "limit": 0.9, "explanation": "All."}
    document = {"id": "1", "project": "p", "run": "r", "step": 1, "artifact_digest": DIGEST, "policy": "default",
                "policy_version": 1, "outcome": "pass", "checks": [check], "created": 1.0}  # fmt: skip
    assert Verdict.from_json(document).canonical() == canonical_json(document)
