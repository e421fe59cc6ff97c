"""Publishing: complete, judged, never overwritten, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from gate_runs import make_model

from lossguard.gate.digest import VERDICT_NAME, artifact_digest
from lossguard.gate.errors import ArtifactUnreadable, NotAModel, NotPublished, NotVerified
from lossguard.gate.publish import STAGING, publish, rename_new, sweep
from lossguard.gate.verify import verify
from lossguard.wire.verdict import Check, Verdict


def verdict_for(digest: str, status: str = "pass") -> Verdict:
    check = Check("telemetry_complete", status, "x", "y", "Because of this.")  # type: ignore[arg-type]
    return Verdict("1" * 32, "default", "ranker", 400, digest, "default", 1, status, (check,), 1.7e9)  # type: ignore[arg-type]


def visible(destination: Path) -> list[str]:
    return sorted(name for name in os.listdir(destination) if not name.startswith("."))


def hidden(destination: Path) -> list[str]:
    return sorted(name for name in os.listdir(destination) if name.startswith("."))


def test_a_pass_becomes_the_next_version_with_its_verdict_beside_it(model: Path, tmp_path: Path) -> None:
    serving = tmp_path / "serving" / "ranker"
    verdict = verdict_for(artifact_digest(model))
    assert publish(model, serving, verdict) == serving / "1"
    assert publish(model, serving, verdict) == serving / "2"
    (serving / "00009").mkdir()
    (serving / "notes").mkdir()
    assert publish(model, serving, verdict) == serving / "10"
    assert publish(model, serving, verdict, 77) == serving / "77"
    assert Verdict.from_json(json.loads((serving / "2" / VERDICT_NAME).read_text())) == verdict
    assert verify(serving / "2").verdict == verdict
    assert hidden(serving) == []
    mode = (serving / "1").stat().st_mode
    assert mode & 0o055 == 0o055 & ~_umask(), "TensorFlow Serving runs as somebody else"


def test_what_was_published_can_be_published_on(model: Path, tmp_path: Path) -> None:
    verdict = verdict_for(artifact_digest(model))
    first = publish(model, tmp_path / "staging", verdict)
    second = publish(first, tmp_path / "production", verdict)
    assert verify(second).verdict == verdict


@pytest.mark.parametrize("status", ["block", "insufficient_data"])
def test_everything_but_a_pass_is_refused_with_its_reasons(model: Path, tmp_path: Path, status: str) -> None:
    with pytest.raises(NotPublished, match=r"only a pass is published\. Because of this"):
        publish(model, tmp_path / "serving", verdict_for(artifact_digest(model), status))
    assert not (tmp_path / "serving").exists()


def test_a_verdict_that_contradicts_its_checks_is_refused(model: Path, tmp_path: Path) -> None:
    forged = replace(verdict_for(artifact_digest(model), "block"), outcome="pass")
    with pytest.raises(NotPublished):
        publish(model, tmp_path / "serving", forged)
    empty = replace(verdict_for(artifact_digest(model)), checks=())
    with pytest.raises(NotPublished):
        publish(model, tmp_path / "serving", empty)


def test_a_byte_changed_after_the_verdict_is_noticed_after_the_copy(model: Path, tmp_path: Path) -> None:
    verdict = verdict_for(artifact_digest(model))
    (model / "fingerprint.pb").write_bytes(b"fq")
    with pytest.raises(NotPublished, match="the export changed since it was judged"):
        publish(model, tmp_path / "serving", verdict)
    assert os.listdir(tmp_path / "serving") == []


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "broken link"])
def test_a_version_that_is_taken_is_never_overwritten(model: Path, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "serving" / "5"
    place.parent.mkdir()
    match kind:
        case "folder":
            make_model(place)
        case "empty folder":
            place.mkdir()
        case "file":
            place.write_text("mine")
        case "broken link":
            place.symlink_to("nowhere")
    verdict = verdict_for(artifact_digest(model))
    with pytest.raises(NotPublished, match="ever overwritten"):
        publish(model, tmp_path / "serving", verdict, 5)
    assert publish(model, tmp_path / "serving", verdict).name == "6"
    with pytest.raises(FileExistsError):
        rename_new(tmp_path / "serving" / "6", place)


@pytest.mark.parametrize("version", [0, -1, 2**63])
def test_a_version_that_cannot_be_is_refused(model: Path, tmp_path: Path, version: int) -> None:
    with pytest.raises(NotPublished, match="--version"):
        publish(model, tmp_path / "serving", verdict_for(artifact_digest(model)), version)


def test_what_is_no_model_or_leads_out_is_refused(model: Path, tmp_path: Path) -> None:
    verdict = verdict_for(artifact_digest(model))
    with pytest.raises(NotPublished, match="outside of it"):
        publish(model, model / "serving", verdict)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotPublished, match="not a folder"):
        publish(model, tmp_path / "file", verdict)
    (model / "assets" / "out").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactUnreadable):
        publish(model, tmp_path / "serving", verdict)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAModel):
        publish(tmp_path / "empty", tmp_path / "serving", verdict)
    assert hidden(tmp_path / "serving") == []


def test_concurrent_publishers_get_versions_of_their_own(model: Path, tmp_path: Path) -> None:
    verdict = verdict_for(artifact_digest(model))
    places: list[Path] = []
    threads = [
        threading.Thread(target=lambda: places.append(publish(model, tmp_path / "serving", verdict))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(place.name) for place in places) == list(range(1, 9))
    for place in places:
        verify(place)
    assert hidden(tmp_path / "serving") == []


def test_verify_notices_every_change_to_what_was_published(model: Path, tmp_path: Path) -> None:
    place = publish(model, tmp_path / "serving", verdict_for(artifact_digest(model)))
    note = place / VERDICT_NAME
    whole = note.read_bytes()
    note.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NotVerified, match="cut or changed"):
        verify(place)
    note.write_bytes(whole.replace(b'"pass"', b'"block"'))
    with pytest.raises(NotVerified, match="do not serve"):
        verify(place)
    note.write_bytes(whole)
    (place / "fingerprint.pb").write_bytes(b"fq")
    with pytest.raises(NotVerified, match="changed after it was judged"):
        verify(place)
    note.unlink()
    with pytest.raises(NotVerified, match="did not publish it"):
        verify(place)


CHILD = """
import json, os, signal, sys
from pathlib import Path
from lossguard.gate import publish as room
from lossguard.wire.verdict import Verdict

artifact, destination, document, kill_at = sys.argv[1:]
count = 0


def deadly(function):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        count += 1
        if count == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call


for name in ("open", "mkdir", "write", "fsync", "rename", "unlink", "rmdir", "close"):
    setattr(os, name, deadly(getattr(os, name)))
room.rename_new = deadly(room.rename_new)
room.publish(Path(artifact), Path(destination), Verdict.from_json(json.loads(Path(document).read_text())))
print(count)
"""


def test_kill_9_at_every_call_leaves_nothing_or_a_whole_judged_version(model: Path, tmp_path: Path) -> None:
    verdict = verdict_for(artifact_digest(model))
    document = tmp_path / "verdict.json"
    document.write_text(json.dumps(verdict.to_json()))

    def run(destination: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-c", CHILD, str(model), str(destination), str(document), str(kill_at)]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    calls = int(run(tmp_path / "whole", 0).stdout)
    assert calls > 40
    outcomes = set()
    for kill_at in range(1, calls + 1):
        serving = tmp_path / f"serving-{kill_at}"
        killed = run(serving, kill_at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        shown = visible(serving) if serving.exists() else []
        assert shown in ([], ["1"])
        if shown:
            assert verify(serving / "1").verdict == verdict
        outcomes.add(tuple(shown))
        assert publish(model, serving, verdict).name == ("2" if shown else "1")
        assert hidden(serving) == [], "the next publisher clears up"
    assert outcomes == {(), ("1",)}


def test_a_publisher_at_work_is_not_swept_away(model: Path, tmp_path: Path) -> None:
    import fcntl

    busy = tmp_path / f"{STAGING}busy"
    busy.mkdir()
    held = os.open(busy, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    dead = tmp_path / f"{STAGING}dead"
    dead.mkdir()
    assert sweep(tmp_path) == [dead]
    os.close(held)
    assert sweep(tmp_path) == [busy]


def test_a_full_disk_or_a_missing_right_publishes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NotPublished, match="No space left on device"):
        publish(model, tmp_path / "serving", verdict_for(artifact_digest(model)))
    assert os.listdir(tmp_path / "serving") == []


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
