"""The gate over a real service: chunks in, verdicts out."""

import json
from typing import Any

import pytest
from gate_runs import DIGEST, Trainer, frames_of

from conftest import Service
from lossguard.wire.chunk import AttemptStart
from lossguard.wire.verdict import Verdict


def ask(service: Service, run: str, step: int, **more: Any) -> dict[str, Any]:
    body = {"project": "default", "run": run, "step": step, "artifact_digest": DIGEST, "scan": SCAN} | more
    answer = service.client.post("/v1/verdicts", json={key: value for key, value in body.items() if value is not None})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    assert Verdict.from_json(document).to_json() == {k: v for k, v in document.items() if k != "signature"}
    return document


SCAN = {"kind": "savedmodel", "tensors": 12, "values": 100_000, "nonfinite": {}, "complete": True}


def reasons(document: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["explanation"] for check in document["checks"] if check["status"] != "pass"}


def test_a_healthy_run_passes_and_its_verdict_can_be_read_again(service: Service) -> None:
    service.trainer("healthy").train(300, checkpoints=(100, 200))
    document = ask(service, "healthy", 300)
    assert (document["outcome"], document["reasons"]) == ("pass", [])
    assert service.client.get(f"/v1/verdicts/{document['id']}").json() == document
    listed = service.client.get("/v1/projects/default/runs/healthy/verdicts")
    assert document["id"] in listed.text


def test_a_collapsed_run_is_blocked_with_task_step_and_rollback_target(service: Service) -> None:
    service.trainer("collapsed").train(400, checkpoints=(100, 150, 300), collapsed_from=251)
    document = ask(service, "collapsed", 400)
    assert document["outcome"] == "block"
    told = reasons(document)
    for word in ("click", "from step 25", "step 150 (ckpt-150)", "learning rate"):
        assert word in told["no_open_incident"], told["no_open_incident"]
    assert "collapsed" in told["batch_auc/click"]


def test_the_checkpoint_before_the_collapse_passes(service: Service) -> None:
    service.trainer("before").train(400, collapsed_from=251)
    assert ask(service, "before", 200)["outcome"] == "pass"
    assert ask(service, "before", 300)["outcome"] == "block"


def test_an_unknown_run_gets_a_verdict_that_says_so(service: Service) -> None:
    document = ask(service, "nobody", 10)
    assert document["outcome"] == "insufficient_data"
    assert "never heard of run nobody" in document["reasons"][0]


def test_a_missing_chunk_is_insufficient_until_it_arrives(service: Service) -> None:
    trainer = service.trainer("late")
    trainer.send(frames_of(1, 64), events=(AttemptStart(0, 1.7e9, trainer.config),))
    trainer.index = 2
    trainer.train(192, start=128)
    told = reasons(ask(service, "late", 192))
    assert "64" in told["judged"]
    trainer.index = 1
    trainer.send(frames_of(65, 128))
    assert ask(service, "late", 192)["outcome"] == "pass"


def test_dropped_frames_are_insufficient_data(service: Service) -> None:
    trainer = service.trainer("dropping")
    trainer.send(frames_of(1, 64), events=(AttemptStart(0, 1.7e9, trainer.config),))
    trainer.send(frames_of(70, 128), drops={"queue_full": 5})
    trainer.train(256, start=128)
    assert "5 (queue_full)" in reasons(ask(service, "dropping", 256))["telemetry_complete"]


def test_a_hole_within_a_chunk_is_found(service: Service) -> None:
    trainer = service.trainer("holey")
    frames = frames_of(1, 200)
    keep = frames.steps != 77
    holey = type(frames)(frames.schema, frames.steps[keep], frames.times[keep], frames.scalars[keep],
                         frames.stats[keep], frames.scalars_present[keep], frames.stats_present[keep])  # fmt: skip
    trainer.send(holey, events=(AttemptStart(0, 1.7e9, trainer.config),))
    trainer.train(256, start=200)
    assert "missing for step 77." in reasons(ask(service, "holey", 256))["telemetry_complete"]


def test_the_lineage_is_judged_and_superseded_steps_are_not(service: Service) -> None:
    first = service.trainer("restarted").train(400, stop=None, collapsed_from=251)
    assert ask(service, "restarted", 400)["outcome"] == "block"
    second = first.restart("b" * 32).train(450, start=200)
    assert ask(service, "restarted", 450)["outcome"] == "pass", reasons(ask(service, "restarted", 450))
    assert ask(service, "restarted", 400)["outcome"] == "pass"
    assert "step_reached" in reasons(ask(service, "restarted", 400, attempt=first.attempt))
    assert ask(service, "restarted", 400, attempt=second.attempt)["outcome"] == "pass"


def test_a_run_that_falls_silent_is_insufficient_data(service: Service) -> None:
    service.trainer("silent").train(300, stop=None)
    assert ask(service, "silent", 300)["outcome"] == "pass"
    service.clock.ahead += 3600
    try:
        assert "nothing was heard" in reasons(ask(service, "silent", 300))["recent"]
    finally:
        service.clock.ahead -= 3600


def test_nan_in_the_loss_blocks(service: Service) -> None:
    service.trainer("nan").train(300, nan_from=280)
    document = ask(service, "nan", 300)
    assert document["outcome"] == "block"
    assert "finite" in reasons(document)


def test_a_run_that_does_not_say_what_it_watches_is_insufficient_data(service: Service) -> None:
    Trainer(service.client, "vague", config={}).train(300)
    assert set(reasons(ask(service, "vague", 300))) == {"coverage"}


def test_supplied_metrics_are_judged_against_the_floor_and_the_last_passed_export(service: Service) -> None:
    service.trainer("measured").train(300)
    good = ask(service, "measured", 300, metrics={"auc/click": 0.67})
    assert good["outcome"] == "pass"
    other = "sha256:" + "6" * 64
    worse = ask(service, "measured", 300, metrics={"auc/click": 0.60}, artifact_digest=other)
    assert "had auc/click 0.6700" in reasons(worse)["metric_not_worse:auc/click"]
    nan = ask(service, "measured", 300, metrics={"auc/click": "NaN"})
    assert next(check for check in nan["checks"] if check["name"] == "metric:auc/click")["observed"] == "NaN"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": "lenient"}, "there are default"),
        ({"step": "ten"}, "step"),
        ({"step": 1.5}, "step"),
        ({"step": True}, "step"),
        ({"step": None}, "step"),
        ({"run": ""}, "run"),
        ({"run": "a\x00b"}, "run"),
        ({"metrics": {"auc/click": "good"}}, "metrics"),
        ({"metrics": {"auc/click": None}}, "metrics"),
        ({"outcome": "pass"}, "outcome"),
        ({"checks": []}, "checks"),
    ],
)
def test_a_question_that_cannot_be_read_is_refused_with_its_field(
    service: Service, change: dict[str, Any], words: str
) -> None:
    body = {"project": "default", "run": "any", "step": 10, "artifact_digest": DIGEST} | change
    answer = service.client.post("/v1/verdicts", json=body)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


def test_texts_from_outside_are_bounded_and_printable(service: Service) -> None:
    document = ask(service, "x" * 200, 2**61, metrics={"m\ud7ff": 1.0}, artifact_digest="\u0007" * 200)
    assert document["outcome"] == "block"
    assert len(json.dumps(document)) < 20_000


def test_policies_can_be_read(service: Service) -> None:
    names = [policy["name"] for policy in service.client.get("/v1/policies").json()["policies"]]
    assert names[:2] == ["default", "strict"]
    assert service.client.get("/v1/policies/strict").json()["quiet_steps"] == 500
    assert service.client.get("/v1/policies/none").status_code == 404
    assert service.client.get(f"/v1/verdicts/{'0' * 32}").status_code == 404
