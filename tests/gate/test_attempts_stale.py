"""Stale answers, wrong attributions, services that are not there: named attempts to get them published, all at 0."""

import socket
from pathlib import Path

import numpy as np
import pytest
from attempts import STEPS, Attempts, Stage
from gate_runs import TASKS, Service, frames_of, make_model

from lossguard.gate.client import ask, open_client, question_about

attempt = Attempts()


@attempt
def silent_run(stage: Stage) -> object:
    stage.trainer().train(STEPS, stop=None)
    stage.service.clock.ahead += 7200
    try:
        return stage.publish()
    finally:
        stage.service.clock.ahead -= 7200


@attempt
def service_down(stage: Stage) -> object:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return stage.publish(None, STEPS, None, "--service", f"http://127.0.0.1:{taken.getsockname()[1]}")


@attempt
def service_that_is_something_else(stage: Stage) -> object:
    return stage.publish(None, STEPS, None, "--service", f"{stage.service.url}/docs")


@attempt
def old_verdict_for_a_new_artifact(stage: Stage) -> object:
    answer = stage.good()
    return stage.place(answer, make_model(stage.tmp / "new", {"kernel": np.zeros(9, np.float32)}))


@attempt
def verdict_of_a_superseded_attempt(stage: Stage) -> object:
    first = stage.trainer().train(STEPS, stop=None)
    first.restart("b" * 32).train(STEPS, start=100)
    return stage.publish(None, STEPS, None, "--attempt", first.attempt)


@attempt
def step_that_a_restart_took_back(stage: Stage) -> object:
    first = stage.trainer().train(STEPS, stop=None)
    first.restart("b" * 32).train(160, start=100)
    return stage.publish()


@attempt
def restart_whose_first_chunk_is_on_its_way(stage: Stage) -> object:
    second = stage.trainer().train(STEPS).restart("b" * 32)
    second.index = 1
    second.send(frames_of(165, 192))
    return stage.publish()


@attempt
def export_from_an_attempt_that_nobody_saw(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    return stage.publish(None, STEPS, None, "--attempt", "f" * 32)


@attempt
def waiver_that_has_expired(stage: Stage) -> object:
    stage.trainer(config={}).train(STEPS)
    body = {"project": "default", "run": stage.name, "checks": ["coverage", "quality/play"], "author": "ann",
            "reason": "only for an hour", "seconds": 3600}  # fmt: skip
    assert stage.service.client.post("/v1/waivers", json=body).status_code == 200
    stage.service.clock.ahead += 3601
    try:
        return stage.publish()
    finally:
        stage.service.clock.ahead -= 3601


@attempt
def waiver_of_another_run(stage: Stage) -> object:
    stage.trainer(config={}).train(STEPS)
    body = {"project": "default", "run": "another", "checks": ["coverage"], "author": "ann",
            "reason": "for that run only", "seconds": 3600}  # fmt: skip
    assert stage.service.client.post("/v1/waivers", json=body).status_code == 200
    return stage.publish()


@attempt
def waiver_of_everything(stage: Stage) -> object:
    stage.trainer().train(STEPS, collapsed_from=100)
    body = {"project": "default", "run": stage.name, "checks": ["*"], "author": "mallory",
            "reason": "we have to ship it", "seconds": 3600}  # fmt: skip
    stage.service.client.post("/v1/waivers", json=body)
    return stage.publish()


@attempt
def waiver_of_the_digest(stage: Stage) -> object:
    answer = stage.good()
    body = {"project": "default", "run": stage.name, "checks": ["artifact_digest", "signature"], "author": "mallory",
            "reason": "we have to ship it", "seconds": 3600}  # fmt: skip
    stage.service.client.post("/v1/waivers", json=body)
    (stage.model / "fingerprint.pb").write_bytes(b"fq")
    return stage.place(answer)


@attempt
def remembered_pass_after_a_restart(stage: Stage) -> object:
    stage.good()
    stage.trainer().restart("b" * 32).train(150, start=100, stop=None)
    return stage.publish()


@attempt
def remembered_pass_of_a_run_that_fell_silent(stage: Stage) -> object:
    stage.trainer().train(STEPS, stop=None)
    with open_client(stage.service.url) as client:
        assert ask(client, question_about(stage.model, "default", stage.name, STEPS)).verdict.outcome == "pass"
    stage.service.clock.ahead += 7200
    try:
        return stage.publish()
    finally:
        stage.service.clock.ahead -= 7200


@attempt
def remembered_pass_after_its_waiver_was_revoked(stage: Stage) -> object:
    stage.trainer(config={"tasks": TASKS}).train(STEPS)
    body = {"project": "default", "run": stage.name, "checks": ["coverage"], "author": "ann",
            "reason": "only for an hour", "seconds": 3600}  # fmt: skip
    waiver = stage.service.client.post("/v1/waivers", json=body).json()
    with open_client(stage.service.url) as client:
        assert ask(client, question_about(stage.model, "default", stage.name, STEPS)).verdict.outcome == "pass"
    revoked = stage.service.client.delete(f"/v1/waivers/{waiver['id']}", params={"author": "ann"})
    assert revoked.status_code == 204
    return stage.publish()


@pytest.mark.parametrize("name", sorted(attempt))
def test_nothing_gets_published(name: str, service: Service, tmp_path: Path) -> None:
    attempt.fails(name, service, tmp_path)
