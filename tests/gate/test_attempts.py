"""Named attempts to get a broken, unjudged, stale, tampered or wrongly attributed model published: all at 0.

Each attempt acts against the real service and the real command or function, and does its best; then the serving folder
is looked at as TensorFlow Serving and the guard would. An attempt may fail in any way; it may not publish.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gate_runs import DIGEST, TASKS, Service, Trainer, frames_of, make_model
from typer.testing import CliRunner, Result

from lossguard.cli.main import app
from lossguard.gate.client import Answer, ask, open_client, question_about
from lossguard.gate.digest import VERDICT_NAME, artifact_digest
from lossguard.gate.errors import GateError
from lossguard.gate.guard import Guard
from lossguard.gate.publish import publish, version_of
from lossguard.gate.signature import read_keys
from lossguard.wire.chunk import AttemptStart, AttemptStop
from lossguard.wire.frame import Frames
from lossguard.wire.verdict import Check, Verdict

runner = CliRunner()
STEPS = 192


@dataclass
class Stage:
    """Where an attempt happens."""

    service: Service
    model: Path
    serving: Path
    keys: dict[str, bytes]
    tmp: Path
    name: str

    def publish(self, run: str | None = None, step: int = STEPS, artifact: Path | None = None, *more: object) -> Result:
        """What an honest pipeline runs."""
        arguments = ["publish", "--run", run or self.name, "--step", step, "--artifact", artifact or self.model,
                     "--service", self.service.url, "--to", self.serving, *more]  # fmt: skip
        return runner.invoke(app, ["gate", *map(str, arguments)])

    def trainer(self, **how: Any) -> Trainer:
        return self.service.trainer(self.name, **how)

    def good(self) -> Answer:
        """A true pass for the model, of a healthy run."""
        self.trainer().train(STEPS)
        with open_client(self.service.url) as client:
            answer = ask(client, question_about(self.model, "default", self.name, STEPS))
        assert answer.verdict.outcome == "pass", answer.verdict.reasons
        return answer

    def place(self, answer: Answer, model: Path | None = None, **how: Any) -> Path:
        return publish(
            model or self.model, self.serving, answer.verdict, document=answer.document, keys=self.keys, **how
        )


ATTEMPTS: dict[str, Callable[[Stage], object]] = {}


def attempt(function: Callable[[Stage], object]) -> Callable[[Stage], object]:
    ATTEMPTS[function.__name__] = function
    return function


# ---------------------------------------------------------------- broken models


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
        other = make_model(stage.tmp / "other", {"kernel": np.ones(5, np.float32)})
        ask(client, question_about(other, "default", stage.name, STEPS, metrics={"auc/click": 0.70}))
    (stage.tmp / "metrics.json").write_text('{"auc/click": 0.62}')
    return stage.publish(None, STEPS, None, "--metrics", stage.tmp / "metrics.json")


# ---------------------------------------------------------------- unjudged models


@attempt
def unknown_run(stage: Stage) -> object:
    return stage.publish()


@attempt
def unknown_project(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    return stage.publish(f"elsewhere/{stage.name}")


@attempt
def known_run_in_other_letters(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    return stage.publish(stage.name.upper())


@attempt
def step_beyond_the_run(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    return stage.publish(None, STEPS + 1)


@attempt
def step_zero(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    return stage.publish(None, 0)


@attempt
def negative_step_past_the_command(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    with open_client(stage.service.url) as client:
        answer = ask(client, replace(question_about(stage.model, "default", stage.name, STEPS), step=-1))
    return stage.place(answer)


@attempt
def run_too_short_to_be_judged(stage: Stage) -> object:
    stage.trainer().train(20)
    return stage.publish(None, 20)


@attempt
def announced_run_without_a_frame(stage: Stage) -> object:
    trainer = stage.trainer()
    frames = frames_of(1, 2)
    trainer.send(frames[0:0], events=(AttemptStart(0, 1.7e9, trainer.config),))
    return stage.publish(None, 1)


@attempt
def first_chunk_missing(stage: Stage) -> object:
    trainer = stage.trainer()
    trainer.index = 1
    trainer.train(STEPS, start=64)
    return stage.publish()


@attempt
def middle_chunk_missing(stage: Stage) -> object:
    trainer = stage.trainer()
    trainer.send(frames_of(1, 64), events=(AttemptStart(0, 1.7e9, trainer.config),))
    trainer.index = 2
    trainer.train(STEPS, start=128)
    return stage.publish()


@attempt
def last_chunk_missing(stage: Stage) -> object:
    stage.trainer().train(128, stop=None)
    return stage.publish()


@attempt
def one_frame_missing_in_a_chunk(stage: Stage) -> object:
    def hole(frames: Frames) -> Frames:
        keep = frames.steps != 100
        arrays = (
            frames.steps,
            frames.times,
            frames.scalars,
            frames.stats,
            frames.scalars_present,
            frames.stats_present,
        )
        return Frames(frames.schema, *(array[keep] for array in arrays))  # type: ignore[arg-type]

    trainer = stage.trainer()
    events = (AttemptStart(0, 1.7e9, trainer.config), AttemptStop(STEPS, 1.7e9, "finished"))
    trainer.send(hole(frames_of(1, STEPS)), events=events)
    return stage.publish()


@attempt
def first_steps_never_sent(stage: Stage) -> object:
    trainer = stage.trainer()
    trainer.send(frames_of(11, STEPS), events=(AttemptStart(0, 1.7e9, trainer.config),))
    return stage.publish()


@attempt
def attempt_that_claims_to_start_late(stage: Stage) -> object:
    stage.trainer().train(STEPS, start=64)
    return stage.publish()


@attempt
def frames_dropped(stage: Stage) -> object:
    trainer = stage.trainer()
    events = (AttemptStart(0, 1.7e9, trainer.config), AttemptStop(STEPS, 1.7e9, "finished"))
    trainer.send(frames_of(1, STEPS), events=events, drops={"queue_full": 1})
    return stage.publish()


@attempt
def steps_sent_twice_in_one_attempt(stage: Stage) -> object:
    trainer = stage.trainer().train(128, stop=None)
    trainer.send(frames_of(100, STEPS))
    return stage.publish()


@attempt
def coverage_not_said(stage: Stage) -> object:
    stage.trainer(config={"tasks": TASKS}).train(STEPS)
    return stage.publish()


@attempt
def coverage_of_half_the_model(stage: Stage) -> object:
    stage.trainer(config={"tasks": TASKS, "parameters_watched": 0.5}).train(STEPS)
    return stage.publish()


@attempt
def coverage_that_is_no_number(stage: Stage) -> object:
    stage.trainer(config={"tasks": TASKS, "parameters_watched": "all"}).train(STEPS)
    return stage.publish()


@attempt
def coverage_above_one(stage: Stage) -> object:
    stage.trainer(config={"tasks": TASKS, "parameters_watched": 7}).train(STEPS)
    return stage.publish()


@attempt
def task_that_logs_nothing(stage: Stage) -> object:
    config = {"tasks": TASKS | {"share": "binary"}, "parameters_watched": 1.0}
    stage.trainer(config=config).train(STEPS)
    return stage.publish()


@attempt
def task_of_an_unknown_kind(stage: Stage) -> object:
    config = {"tasks": TASKS | {"order": "listwise"}, "parameters_watched": 1.0}
    stage.trainer(config=config).train(STEPS)
    return stage.publish()


@attempt
def training_that_failed_at_the_step(stage: Stage) -> object:
    stage.trainer().train(STEPS, stop="failed")
    return stage.publish()


@attempt
def artifact_that_nobody_scanned(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    with open_client(stage.service.url) as client:
        return stage.place(ask(client, replace(question_about(stage.model, "default", stage.name, STEPS), scan=None)))


@attempt
def policy_that_does_not_exist(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    return stage.publish(None, STEPS, None, "--policy", "anything-goes")


@attempt
def policy_without_the_breaking_kinds(stage: Stage) -> object:
    stage.trainer().train(STEPS, collapsed_from=100)
    rules = {"name": "blind", "blocking_kinds": []}
    stage.service.client.post("/v1/policies", json={"rules": rules, "author": "mallory"})
    return stage.publish(None, STEPS, None, "--policy", "blind")


@attempt
def policy_that_replaces_the_default(stage: Stage) -> object:
    stage.trainer().train(STEPS, collapsed_from=100)
    rules = {"name": "default", "version": 99, "batch_auc_floor": 0.5, "recovered_budget": 1000}
    stage.service.client.post("/v1/policies", json={"rules": rules, "author": "mallory"})
    return stage.publish()


@attempt
def strict_policy_without_held_out_metrics(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    return stage.publish(None, STEPS, None, "--policy", "strict")


# ---------------------------------------------------------------- stale answers and services that are not there


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


# ---------------------------------------------------------------- tampered verdicts, artifacts and folders


def forge(stage: Stage, **changes: Any) -> object:
    """Publish with a document that was changed on the way."""
    document = stage.good().document | changes
    return stage.place(Answer(Verdict.from_json(document), document))


@attempt
def block_turned_into_a_pass(stage: Stage) -> object:
    stage.trainer().train(STEPS, collapsed_from=100)
    with open_client(stage.service.url) as client:
        document = ask(client, question_about(stage.model, "default", stage.name, STEPS)).document
    checks = [check | {"status": "pass"} for check in document["checks"]]
    document = document | {"outcome": "pass", "checks": checks}
    return stage.place(Answer(Verdict.from_json(document), document))


@attempt
def outcome_changed_alone(stage: Stage) -> object:
    stage.trainer().train(STEPS, collapsed_from=100)
    with open_client(stage.service.url) as client:
        answer = ask(client, question_about(stage.model, "default", stage.name, STEPS))
    return stage.place(Answer(replace(answer.verdict, outcome="pass"), answer.document | {"outcome": "pass"}))


@attempt
def verdict_written_by_hand(stage: Stage) -> object:
    check = Check("all_good", "pass", 1, 1, "Trust me.")
    digest = artifact_digest(stage.model)
    verdict = Verdict("0" * 32, "default", stage.name, STEPS, digest, "default", 1, "pass", (check,), 1.7e9)
    return stage.place(Answer(verdict, verdict.to_json()))


@attempt
def digest_exchanged_in_the_verdict(stage: Stage) -> object:
    other = make_model(stage.tmp / "other", {"kernel": np.zeros(9, np.float32)})
    answer = stage.good()
    document = answer.document | {"artifact_digest": artifact_digest(other)}
    return stage.place(Answer(Verdict.from_json(document), document), other)


@attempt
def run_exchanged_in_the_verdict(stage: Stage) -> object:
    return forge(stage, run="the-good-one")


@attempt
def failed_check_removed_from_the_verdict(stage: Stage) -> object:
    document = stage.good().document
    return stage.place(Answer(Verdict.from_json(document | {"checks": document["checks"][:-1]}),
                              document | {"checks": document["checks"][:-1]}))  # fmt: skip


@attempt
def signature_removed(stage: Stage) -> object:
    return forge(stage, signature=None)


@attempt
def signature_of_another_verdict(stage: Stage) -> object:
    first = stage.good()
    with open_client(stage.service.url) as client:
        second = ask(client, question_about(stage.model, "default", stage.name, STEPS))
    document = second.document | {"signature": first.document["signature"]}
    return stage.place(Answer(second.verdict, document))


@attempt
def signature_by_a_key_of_ones_own(stage: Stage) -> object:
    from lossguard_service.gate.signing import new_key, sign

    answer = stage.good()
    return stage.place(Answer(answer.verdict, answer.document | {"signature": sign(answer.verdict, new_key(0.0))}))


@attempt
def document_of_another_verdict(stage: Stage) -> object:
    answer = stage.good()
    with open_client(stage.service.url) as client:
        other = ask(client, question_about(stage.model, "default", stage.name, STEPS))
    return publish(stage.model, stage.serving, answer.verdict, document=other.document, keys=stage.keys)


@attempt
def one_byte_changed_between_verdict_and_publishing(stage: Stage) -> object:
    answer = stage.good()
    data = stage.model / "variables" / "variables.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(bytes(content))
    return stage.place(answer)


@attempt
def file_added_between_verdict_and_publishing(stage: Stage) -> object:
    answer = stage.good()
    (stage.model / "assets" / "extra.txt").write_text("x")
    return stage.place(answer)


@attempt
def file_removed_between_verdict_and_publishing(stage: Stage) -> object:
    answer = stage.good()
    (stage.model / "fingerprint.pb").unlink()
    return stage.place(answer)


@attempt
def link_out_of_the_artifact(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    (stage.tmp / "outside").write_bytes(b"fp")
    (stage.model / "fingerprint.pb").unlink()
    (stage.model / "fingerprint.pb").symlink_to(stage.tmp / "outside")
    return stage.publish()


@attempt
def byte_changed_while_it_is_copied(stage: Stage) -> object:
    from lossguard.gate import publish as room

    answer, copy = stage.good(), room._copy

    def change_then_copy(file: Any, target: Path) -> None:
        (stage.model / "variables" / "variables.index").write_bytes(b"swapped")
        copy(file, target)

    room._copy = change_then_copy
    try:
        return stage.place(answer)
    finally:
        room._copy = copy


@attempt
def published_model_changed_afterwards(stage: Stage) -> object:
    (stage.place(stage.good()) / "variables" / "variables.index").write_bytes(b"swapped")
    return None


@attempt
def published_verdict_cut_afterwards(stage: Stage) -> object:
    note = stage.place(stage.good()) / VERDICT_NAME
    note.write_bytes(note.read_bytes()[:-40])
    return None


@attempt
def published_verdict_removed_afterwards(stage: Stage) -> object:
    (stage.place(stage.good()) / VERDICT_NAME).unlink()
    return None


@attempt
def model_copied_into_the_serving_folder_by_hand(stage: Stage) -> object:
    shutil.copytree(stage.model, stage.serving / "9")
    return None


@attempt
def good_verdict_copied_beside_another_model(stage: Stage) -> object:
    place = stage.place(stage.good())
    shutil.copytree(make_model(stage.tmp / "bad", {"kernel": np.full(4, np.nan, np.float32)}), stage.serving / "2")
    shutil.move(place / VERDICT_NAME, stage.serving / "2" / VERDICT_NAME)
    return None


@attempt
def link_to_a_folder_that_can_change(stage: Stage) -> object:
    place = stage.place(stage.good())
    hidden = stage.serving / "elsewhere"
    os.rename(place, hidden)
    (stage.serving / "1").symlink_to(hidden)
    return None


@attempt
def version_with_a_space_before_its_number(stage: Stage) -> object:
    shutil.copytree(stage.model, stage.serving / " 3")
    return None


@attempt
def verdict_as_a_folder(stage: Stage) -> object:
    shutil.copytree(stage.model, stage.serving / "3")
    (stage.serving / "3" / VERDICT_NAME).mkdir()
    return None


@attempt
def verdict_that_is_deeply_nested(stage: Stage) -> object:
    shutil.copytree(stage.model, stage.serving / "3")
    (stage.serving / "3" / VERDICT_NAME).write_text("[" * 100_000)
    return None


@attempt
def digest_that_is_well_formed_and_wrong(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    question = replace(question_about(stage.model, "default", stage.name, STEPS), artifact_digest=DIGEST)
    with open_client(stage.service.url) as client:
        return stage.place(ask(client, question))


@attempt
def digest_that_is_not_one(stage: Stage) -> object:
    stage.trainer().train(STEPS)
    question = replace(question_about(stage.model, "default", stage.name, STEPS), artifact_digest="latest")
    with open_client(stage.service.url) as client:
        return stage.place(ask(client, question))


@attempt
def json_with_the_same_key_twice(stage: Stage) -> object:
    stage.trainer().train(STEPS, collapsed_from=100)
    with open_client(stage.service.url) as client:
        text = json.dumps(ask(client, question_about(stage.model, "default", stage.name, STEPS)).document)
    document = json.loads(text[:-1] + ', "outcome": "pass"}')
    return stage.place(Answer(Verdict.from_json(document), document))


@pytest.mark.parametrize("name", sorted(ATTEMPTS))
def test_nothing_gets_published(name: str, service: Service, tmp_path: Path) -> None:
    keys = read_keys([one["public"] for one in service.client.get("/v1/keys").json()["keys"]])
    stage = Stage(service, make_model(tmp_path / "export"), tmp_path / "serving", keys, tmp_path, f"try-{name}")
    try:
        result = ATTEMPTS[name](stage)
    except (GateError, OSError, ValueError, httpx.HTTPError):
        result = None
    if isinstance(result, Result):
        assert result.exit_code != 0, result.output
        assert result.exit_code in (1, 2, 3, 4), result.output
    if stage.serving.exists():
        Guard(stage.serving, keys).look()
        assert [entry for entry in os.listdir(stage.serving) if version_of(entry) is not None] == []


def test_there_are_enough_attempts_and_an_honest_one_succeeds(service: Service, tmp_path: Path) -> None:
    assert len(ATTEMPTS) >= 60
    keys = read_keys([one["public"] for one in service.client.get("/v1/keys").json()["keys"]])
    stage = Stage(service, make_model(tmp_path / "export"), tmp_path / "serving", keys, tmp_path, "honest")
    stage.trainer().train(STEPS)
    result = stage.publish(None, STEPS, None, "--key", next(iter(service_keys(service))))
    assert result.exit_code == 0, result.output
    assert [finding.good for finding in Guard(stage.serving, keys).look()] == [True]


def service_keys(service: Service) -> list[str]:
    return [one["public"] for one in service.client.get("/v1/keys").json()["keys"] if one["state"] == "active"]
