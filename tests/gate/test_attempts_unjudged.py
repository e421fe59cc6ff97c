"""Models that nobody judged: named attempts to get them published, all at 0."""

from dataclasses import replace
from pathlib import Path

import pytest
from attempts import STEPS, Attempts, Stage
from gate_runs import TASKS, Service, frames_of

from lossguard.gate.client import ask, open_client, question_about
from lossguard.wire.chunk import AttemptStart, AttemptStop
from lossguard.wire.frame import Frames

attempt = Attempts()


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


@pytest.mark.parametrize("name", sorted(attempt))
def test_nothing_gets_published(name: str, service: Service, tmp_path: Path) -> None:
    attempt.fails(name, service, tmp_path)
