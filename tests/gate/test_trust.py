"""Signatures, keys, waivers, the guard of a serving folder and the audit log, over a real service."""

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from gate_runs import DIGEST, Service, make_model
from typer.testing import CliRunner, Result

from lossguard.cli.main import app
from lossguard.gate.client import Answer, ask, open_client, question_about
from lossguard.gate.digest import VERDICT_NAME
from lossguard.gate.errors import NotVerified
from lossguard.gate.guard import QUARANTINE, Guard
from lossguard.gate.publish import publish
from lossguard.gate.signature import NotAKey, check_signature, read_keys
from lossguard.wire.verdict import Verdict

runner = CliRunner()
SCAN = {"kind": "savedmodel", "tensors": 12, "values": 100_000, "nonfinite": {}, "complete": True}


def gate(*arguments: object) -> Result:
    return runner.invoke(app, ["gate", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def trusted(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service's public keys, in a file."""
    service.trainer("signed").train(300)
    path = tmp_path_factory.mktemp("keys") / "gate.pub"
    assert gate("keys", "--out", path, "--service", service.url).exit_code == 0
    return path


def judged(service: Service, model: Path, run: str = "signed", step: int = 300) -> Answer:
    with open_client(service.url) as client:
        return ask(client, question_about(model, "default", run, step))


def test_a_verdict_is_signed_and_verified_offline(service: Service, trusted: Path, model: Path, tmp_path: Path) -> None:
    serving = tmp_path / "serving"
    result = gate("publish", "--run", "signed", "--step", 300, "--artifact", model, "--service", service.url, "--to",
                  serving, "--key", trusted)  # fmt: skip
    assert result.exit_code == 0, result.output
    good = gate("verify", serving / "1", "--key", trusted)
    assert good.exit_code == 0, good.output
    key = trusted.read_text().split()[0]
    assert gate("verify", serving / "1", "--key", key, "--format", "json").exit_code == 0
    assert gate("verify", serving / "1").exit_code == 2
    assert gate("verify", serving / "1", "--unsigned").exit_code == 0


def tampered(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every way to change what a signature covers or what it is."""
    signature = document["signature"]
    other = base64.b64encode(bytes(64)).decode()
    checks = document["checks"]
    return [
        ("run", {"run": "another"}),
        ("project", {"project": "another"}),
        ("step", {"step": 299}),
        ("policy", {"policy": "lenient"}),
        ("policy version", {"policy_version": 7}),
        ("created", {"created": document["created"] + 1}),
        ("id", {"id": "0" * 32}),
        ("digest", {"artifact_digest": DIGEST}),
        ("a check removed", {"checks": checks[:-1]}),
        ("a check's words", {"checks": [checks[0] | {"explanation": "trust me"}, *checks[1:]]}),
        ("a check's limit", {"checks": [*checks[:-1], checks[-1] | {"limit": 0}]}),
        ("no signature", {"signature": None}),
        ("an empty signature", {"signature": {}}),
        ("a signature of zeros", {"signature": signature | {"value": other}}),
        ("a signature that is no base64", {"signature": signature | {"value": "!"}}),
        ("no value", {"signature": {k: v for k, v in signature.items() if k != "value"}}),
        ("another algorithm", {"signature": signature | {"algorithm": "none"}}),
        ("another key", {"signature": signature | {"key": "0" * 16}}),
        ("a key that is no text", {"signature": signature | {"key": ["x"]}}),
    ]


def test_a_verdict_changed_in_any_field_is_not_verified(service: Service, trusted: Path, model: Path) -> None:
    answer = judged(service, model)
    keys = read_keys([trusted])
    assert check_signature(answer.verdict, answer.document, keys) in keys
    for what, change in tampered(answer.document):
        document = answer.document | change
        verdict = Verdict.from_json(document)
        with pytest.raises(NotVerified):
            print(what, check_signature(verdict, document, keys))
    with pytest.raises(NotVerified, match="not trusted here"):
        check_signature(answer.verdict, answer.document, {})


def test_a_signature_of_one_verdict_is_none_of_another(service: Service, trusted: Path, model: Path) -> None:
    first, second = judged(service, model), judged(service, model, step=299)
    assert first.verdict.id != second.verdict.id
    forged = second.document | {"signature": first.document["signature"]}
    with pytest.raises(NotVerified, match="it was changed"):
        check_signature(second.verdict, forged, read_keys([trusted]))


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "ed25519:", "ed25519:AAAA", "rsa:AAAA", "-----BEGIN PUBLIC KEY-----"]
)
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "gate.pub").write_text(text)
    with pytest.raises(NotAKey):
        read_keys([tmp_path / "gate.pub"])
    with pytest.raises(NotAKey, match="gate keys --out"):
        read_keys([tmp_path / "nowhere"])


def test_rotation_keeps_old_verdicts_and_revocation_ends_them(service: Service, model: Path, tmp_path: Path) -> None:
    service.trainer("rotated").train(300)
    before = judged(service, model, "rotated")
    changed = gate("keys", "--rotate", "--author", "ann", "--reason", "yearly", "--out", tmp_path / "gate.pub",
                   "--service", service.url)  # fmt: skip
    assert changed.exit_code == 0, changed.output
    after = judged(service, model, "rotated")
    old, new = before.document["signature"]["key"], after.document["signature"]["key"]
    assert old != new
    both = read_keys([tmp_path / "gate.pub"])
    assert {old, new} <= set(both)
    for answer in (before, after):
        check_signature(answer.verdict, answer.document, both)
    revoked = gate("keys", "--revoke", new, "--author", "ann", "--reason", "it leaked", "--out", tmp_path / "gate.pub",
                   "--service", service.url, "--format", "json")  # fmt: skip
    states = {one["key"]: one["state"] for one in json.loads(revoked.stdout)["keys"]}
    assert (states[old], states[new]) == ("retired", "revoked")
    with pytest.raises(NotVerified, match="not trusted here"):
        check_signature(after.verdict, after.document, read_keys([tmp_path / "gate.pub"]))
    third = judged(service, model, "rotated").document["signature"]["key"]
    assert third not in (old, new)
    assert "PRIVATE" not in revoked.stdout.upper()
    assert gate("keys", "--revoke", new, "--author", "a", "--reason", "b", "--service", service.url).exit_code == 2
    assert gate("keys", "--rotate", "--service", service.url).exit_code == 2


def test_the_guard_moves_away_what_is_not_judged_and_leaves_the_rest(
    service: Service, model: Path, tmp_path: Path
) -> None:
    serving = tmp_path / "serving"
    answer = judged(service, model)
    for _ in range(6):
        publish(model, serving, answer.verdict, document=answer.document)
    make_model(serving / "7")  # copied by hand
    (serving / "2" / VERDICT_NAME).unlink()
    (serving / "3" / "fingerprint.pb").write_bytes(b"fq")
    note = serving / "4" / VERDICT_NAME
    note.write_text(json.dumps(json.loads(note.read_text()) | {"signature": None}))
    (serving / "5" / "assets").mkdir(exist_ok=True)
    (serving / "5" / "assets" / "extra").write_text("x")
    (serving / "8").symlink_to(serving / "1")
    (serving / "README").write_text("not a version")
    keys = read_keys([one["public"] for one in service.client.get("/v1/keys").json()["keys"]])
    dry = Guard(serving, keys, dry=True).look()
    assert [finding.version for finding in dry if not finding.good] == ["2", "3", "4", "5", "7", "8"]
    assert sorted(os.listdir(serving)) == ["1", "2", "3", "4", "5", "6", "7", "8", "README"]
    findings = Guard(serving, keys).look()
    assert [finding.version for finding in findings if finding.good] == ["1", "6"]
    assert sorted(name for name in os.listdir(serving) if not name.startswith(".")) == ["1", "6", "README"]
    assert len([name for name in os.listdir(serving) if name.startswith(QUARANTINE)]) == 6
    shutil.copytree(serving / "1", serving / "2")
    (serving / "2" / "fingerprint.pb").write_bytes(b"fq")
    again = Guard(serving, keys).look()
    assert [(f.version, f.moved_to and f.moved_to.name) for f in again if not f.good] == [("2", f"{QUARANTINE}2-1")]


def test_the_guard_notices_a_later_change_to_what_it_found_good(service: Service, model: Path, tmp_path: Path) -> None:
    answer = judged(service, model)
    place = publish(model, tmp_path / "serving", answer.verdict, document=answer.document)
    guard = Guard(tmp_path / "serving", {})
    assert [finding.good for finding in guard.look()] == [True]
    assert [finding.good for finding in guard.look()] == [True]
    (place / "fingerprint.pb").write_bytes(b"fq")
    assert [finding.good for finding in guard.look()] == [False]


def test_the_guard_command_says_what_it_did(service: Service, trusted: Path, model: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "serving" / "7")
    dry = gate("guard", tmp_path / "serving", "--key", trusted, "--dry", "--format", "json")
    assert (dry.exit_code, json.loads(dry.stdout)["versions"][0]["good"]) == (1, False)
    moved = gate("guard", tmp_path / "serving", "--key", trusted)
    assert moved.exit_code == 1
    assert "version 7" in moved.stderr
    assert gate("guard", tmp_path / "serving", "--key", trusted).exit_code == 0
    assert gate("guard", tmp_path / "serving").exit_code == 2
    assert gate("guard", tmp_path / "nowhere", "--unsigned").exit_code == 2


def test_a_waiver_lets_a_check_pass_and_the_verdict_says_who_and_why(
    service: Service, model: Path, tmp_path: Path
) -> None:
    service.trainer("waived", config={"tasks": {"click": "binary", "play": "regression"}}).train(300)
    before = judged(service, model, "waived").verdict
    assert before.outcome == "insufficient_data"
    words = ["--author", "ann", "--reason", "all layers but a frozen table are watched", "--service", service.url]
    made = gate("waive", "--run", "waived", "--check", "coverage", "--for", "2h", "--format", "json", *words)
    waiver = json.loads(made.stdout)
    after = judged(service, model, "waived").verdict
    assert after.outcome == "pass"
    text = next(check.explanation for check in after.checks if check.name == "coverage")
    for word in ("Waived by ann", waiver["id"], "frozen table", "would be insufficient_data"):
        assert word in text
    assert judged(service, model, "signed").verdict.outcome == "pass", "another run is not touched"
    service.clock.ahead += 3 * 3600
    try:
        assert judged(service, model, "waived").verdict.outcome == "insufficient_data"
    finally:
        service.clock.ahead -= 3 * 3600
    assert service.client.delete(f"/v1/waivers/{waiver['id']}", params={"author": "bob"}).status_code == 204
    assert judged(service, model, "waived").verdict.outcome == "insufficient_data"
    assert service.client.delete(f"/v1/waivers/{waiver['id']}", params={"author": "bob"}).status_code == 404


def test_a_waiver_for_one_step_is_for_no_other(service: Service, model: Path) -> None:
    service.trainer("stepwise", config={}).train(400)
    words = ["--author", "ann", "--reason", "looked at by hand today", "--service", service.url]
    assert gate("waive", "--run", "stepwise", "--check", "coverage", "--step", 400, *words).exit_code == 0
    with open_client(service.url) as client:
        outcomes = [
            ask(client, question_about(model, "default", "stepwise", step)).verdict.outcome for step in (300, 400)
        ]
    assert outcomes == ["insufficient_data", "pass"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checks": ["artifact_digest"]}, "cannot be waived"),
        ({"checks": ["run_known"]}, "cannot be waived"),
        ({"checks": ["step_reached"]}, "cannot be waived"),
        ({"checks": ["signature"]}, "cannot be waived"),
        ({"checks": ["*"]}, "is not the name"),
        ({"checks": ["quite_period"]}, "did you mean quiet_period?"),
        ({"checks": ["coverage", "batch_auc/"]}, "no check is named 'batch_auc/'"),
        ({"checks": []}, "name the checks"),
        ({"author": " "}, "responsibility"),
        ({"reason": "because"}, "say why"),
        ({"seconds": 91 * 86_400.0}, "at most 90 days"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": "Infinity"}, "seconds"),
        ({"first_step": 9, "last_step": 3}, "first_step"),
        ({"outcome": "pass"}, "outcome"),
    ],
)
def test_a_waiver_that_cannot_be_is_refused(service: Service, change: dict[str, Any], words: str) -> None:
    body = {"project": "default", "run": "any", "checks": ["coverage"], "author": "ann", "seconds": 60,
            "reason": "reviewed by hand"}  # fmt: skip
    answer = service.client.post("/v1/waivers", json=body | change)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_policies_are_versioned_and_judge_by_their_newest_version(service: Service, model: Path) -> None:
    rules = {"name": "nightly", "quality_steps": 20, "batch_auc_floor": 0.6}
    first = service.client.post("/v1/policies", json={"rules": rules, "author": "ann"}).json()
    second = service.client.post(
        "/v1/policies", json={"rules": rules | {"batch_auc_floor": 0.9}, "author": "bob"}
    ).json()
    assert (first["version"], second["version"]) == (1, 2)
    with open_client(service.url) as client:
        verdict = ask(client, question_about(model, "default", "signed", 300, policy="nightly")).verdict
    assert (verdict.policy_version, verdict.outcome) == (2, "block")
    for wrong, words in (({"name": "default"}, "built in"), ({"name": "x", "speed": 1}, "no such rule"), ({}, "name")):
        answer = service.client.post("/v1/policies", json={"rules": wrong, "author": "ann"})
        assert (answer.status_code, words in answer.json()["detail"]) == (422, True)


def test_the_audit_log_holds_everything_in_order(service: Service, model: Path) -> None:
    verdict = judged(service, model, step=298).verdict
    done = gate("audit", "--service", service.url)
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    assert [entry["sequence"] for entry in entries] == sorted(entry["sequence"] for entry in entries)
    assert entries[-1]["document"]["verdict"] == verdict.id
    assert {"verdict", "key_created"} <= {entry["kind"] for entry in entries}
    assert "private" not in done.stdout
    whole = gate("audit", "--service", service.url, "--project", "default", "--format", "json")
    assert json.loads(whole.stdout)["entries"] == [entry for entry in entries if entry["project"] == "default"]
    shown = gate("audit", "--service", service.url, "--format", "table").stdout
    assert verdict.id in shown
    refused = gate("audit", "--service", "http://127.0.0.1:9", "--format", "json")
    assert (refused.exit_code, json.loads(refused.stdout)["outcome"]) == (4, None)


def test_what_went_wrong_comes_with_what_to_do(service: Service, tmp_path: Path) -> None:
    versions = tmp_path / "serving"
    (versions / "7").mkdir(parents=True)
    (versions / "7" / "lossguard_verdict.json").write_text("{}")
    (tmp_path / "nameless.json").write_text('{"quiet_steps": 10}')
    (tmp_path / "broken.yaml").write_text("name: [x\n")
    said = ["--author", "ann", "--service", service.url]
    for arguments, code, words in (
        (["explain", "serving/nope", "--service", service.url], 2, "neither a published model's folder nor a verdict"),
        (["explain", "0" * 32, "--service", service.url], 2, "`lossguard gate audit` lists them"),
        (["verify", versions, "--unsigned"], 1, f"name one of them, {versions / '7'}"),
        (["verify", versions / "8", "--unsigned"], 1, "does not exist"),
        (["verify", versions / "7", "--key", tmp_path / "none.pub"], 2, "(No such file or directory): write one with"),
        (["keys", "--rotate", "--service", service.url], 2, "--rotate: goes with --author and --reason"),
        (["keys", "--revoke", "no/key", "--reason", "a test of it", *said], 2, "the service refused (404)"),
        (["keys", "--out", tmp_path / "no" / "gate.pub", "--service", service.url], 2, "cannot be written"),
        (["keys", "--service", f"{service.url}/v1"], 2, "Correct --service"),
        (["policy", tmp_path / "nameless.json", *said], 2, "for example name: nightly"),
        (["policy", tmp_path / "broken.yaml", *said], 2, "line 2, column 1"),
    ):
        done = gate(*arguments)
        assert (done.exit_code, words in done.output) == (code, True), done.output
