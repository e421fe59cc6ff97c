"""Tampered verdicts, artifacts and folders: named attempts to get them published, all at 0."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attempts import STEPS, Attempts, Stage
from gate_runs import DIGEST, Service, make_model

from lossguard.gate.client import Answer, ask, open_client, question_about
from lossguard.gate.digest import VERDICT_NAME, artifact_digest
from lossguard.gate.publish import publish
from lossguard.wire.verdict import Check, Verdict

attempt = Attempts()


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
        second = ask(client, question_about(stage.model, "default", stage.name, STEPS, attempt="a" * 32))
    assert second.verdict.id != first.verdict.id
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
        other = ask(client, question_about(stage.model, "default", stage.name, STEPS, attempt="a" * 32))
    assert other.verdict.id != answer.verdict.id
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


@pytest.mark.parametrize("name", sorted(attempt))
def test_nothing_gets_published(name: str, service: Service, tmp_path: Path) -> None:
    attempt.fails(name, service, tmp_path)
