"""The attempts to get a bad model published, counted; and an honest one, which succeeds."""

from pathlib import Path

import test_attempts_broken
import test_attempts_hidden
import test_attempts_stale
import test_attempts_tampered
import test_attempts_unjudged
from attempts import STEPS, stage_of
from gate_runs import Service

from lossguard.gate.guard import Guard

FILES = (
    test_attempts_broken,
    test_attempts_hidden,
    test_attempts_stale,
    test_attempts_tampered,
    test_attempts_unjudged,
)


def test_there_are_enough_attempts_under_names_of_their_own() -> None:
    names = [name for file in FILES for name in file.attempt]
    assert len(names) == len(set(names)) >= 100


def test_an_honest_one_succeeds(service: Service, tmp_path: Path) -> None:
    stage = stage_of("honest", service, tmp_path)
    stage.trainer().train(STEPS)
    active = [one["public"] for one in service.client.get("/v1/keys").json()["keys"] if one["state"] == "active"]
    result = stage.publish(None, STEPS, None, "--key", active[0])
    assert result.exit_code == 0, result.output
    assert [finding.good for finding in Guard(stage.serving, stage.keys).look()] == [True]
