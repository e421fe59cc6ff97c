"""`lossguard sidecar` as its own process, against a service on loopback."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from service_on_loopback import Answer, LoopbackService
from sidecar_process import frames, once, read, record, sidecar, steps_of

from lossguard.journal.reader import AttemptReader, RunLock
from lossguard.recorder import Recorder
from lossguard.wire.chunk import Checkpoint
from lossguard.wire.header import MAGIC

pytestmark = pytest.mark.usefixtures("no_leaks", "guard_raises")


def test_once_ships_all_runs_and_deletes_what_is_acknowledged(tmp_path: Path, service: LoopbackService) -> None:
    for number in range(5):
        record(tmp_path, f"run {number}", 1, 12)
    code, errors = once(tmp_path, "--service", service.url, "--token", "secret")
    assert code == 0, errors
    assert "of 5 runs" in errors
    for number in range(5):
        assert steps_of(service, f"run {number}") == list(range(1, 13))
    assert service.duplicates == service.conflicts == 0
    assert not list(tmp_path.rglob("*.journal"))
    assert service.authorizations == {"Bearer secret"}


def test_attempts_are_shipped_in_the_order_of_their_start(tmp_path: Path, service: LoopbackService) -> None:
    attempts = [record(tmp_path, "r", 1 + 10 * number, 10).attempt for number in range(4)]
    assert once(tmp_path, "--service", service.url)[0] == 0
    order = list(dict.fromkeys(identity[2] for identity in service.arrivals))
    assert order == attempts
    for attempt in attempts:
        indices = [identity[3] for identity in service.arrivals if identity[2] == attempt]
        assert indices == list(range(len(indices)))


def test_a_dead_service_is_exit_code_4_and_nothing_is_lost(tmp_path: Path, service: LoopbackService) -> None:
    record(tmp_path, "r", 1, 12)
    code, errors = once(tmp_path, "--service", "http://127.0.0.1:9")
    assert code == 4
    assert "does not answer" in errors
    assert "stay on disk" in errors
    assert once(tmp_path, "--service", service.url)[0] == 0
    assert steps_of(service, "r") == list(range(1, 13))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("{root}/nowhere", "--service", "http://127.0.0.1:9"), "there is no folder"),
        (("{root}", "--service", "127.0.0.1:9"), "service: must be a URL"),
        (("{root}", "--service", "http://127.0.0.1:99999"), "service: must be a URL"),
        (("{root}", "--service", "http://ho st"), "service: must be a URL"),
        (("{root}", "--service", "http://a..b"), "service: must be a URL"),
        (("{root}", "--service", "http://me:secret@127.0.0.1:9"), "give a token"),
        (("{root}", "--service", "http://127.0.0.1:9", "--status-host", "0.0.0.0"), "add --status-port"),
        (("{root}", "--service", "http://127.0.0.1:9", "--ca", "{root}/none.pem"), "ca: cannot read"),
        (("{root}", "--service", "http://127.0.0.1:9", "--token", "two\nlines"), "token: must be"),
    ],
)
def test_wrong_use_is_exit_code_2_and_a_sentence(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    code, errors = once(*(argument.format(root=tmp_path) for argument in arguments))
    assert code == 2
    assert sentence in errors


def test_a_refused_token_is_wrong_use(tmp_path: Path, service: LoopbackService) -> None:
    record(tmp_path, "r", 1, 3)
    service.always = lambda identity: Answer(401, b'{"detail": "unknown token"}')
    code, errors = once(tmp_path, "--service", service.url)
    assert code == 2
    assert "--token" in errors
    assert list(tmp_path.rglob("*.journal")), "a refused token sets nothing aside"


def test_a_refused_chunk_is_set_aside_with_its_reason_and_the_rest_goes_on(
    tmp_path: Path, service: LoopbackService
) -> None:
    recorder = record(tmp_path, "r", 1, 12)
    bad = ("ads", "r", recorder.attempt, 1)
    service.always = lambda identity: Answer(422, b'{"detail": "no such stat"}') if identity == bad else None
    code, errors = once(tmp_path, "--service", service.url)
    assert code == 0
    assert "no such stat" in errors
    assert "1 were refused and set aside" in errors
    assert steps_of(service, "r") == list(range(6, 13))
    (reason,) = tmp_path.rglob("rejected/*.json")
    assert "422 no such stat" in reason.read_text()
    assert reason.with_suffix(".chunk").stat().st_size > 0


def test_in_place_of_a_refused_chunk_the_service_gets_an_empty_one_with_its_events_and_counts(
    tmp_path: Path, service: LoopbackService
) -> None:
    recorder = Recorder(tmp_path, "ads", "r", seal_frames=5, seal_seconds=3600.0)
    for step in range(1, 13):
        recorder.record(frames(step, 1))
        if step == 8:
            recorder.event(Checkpoint(8, 1.7e9, "ckpt-8", True))
    recorder.close()
    refused: dict[tuple[str, str, str, int], int] = {}

    def refuse(identity: tuple[str, str, str, int]) -> Answer | None:
        if identity[3] not in (2, 3):
            return None
        refused[identity] = refused.get(identity, 0) + 1
        # The second time an outage comes between: the chunk is passed only when the service knows.
        return {1: Answer(413), 2: Answer(500), 3: Answer(413)}.get(refused[identity])

    service.always = refuse
    code, errors = once(tmp_path, "--service", service.url)
    assert code == 0, errors
    (stored,) = service.chunks("r").values()
    assert [chunk.id.index for chunk in stored] == list(range(4))
    assert stored[1].drops == {}
    lost = stored[2:4]
    assert [chunk.drops for chunk in lost] == [{"refused": 3}, {"refused": 4}]
    assert [len(chunk.frames) for chunk in lost] == [0, 0]
    assert [event.step for event in lost[0].events] == [8]
    assert len(list(tmp_path.rglob("rejected/*.chunk"))) == 2


def test_a_first_chunk_that_rotted_is_told_of_once_as_nobody_can_stand_in_for_it(
    tmp_path: Path, service: LoopbackService
) -> None:
    record(tmp_path, "r", 1, 12)
    (journal,) = tmp_path.rglob("*.journal")
    data = bytearray(journal.read_bytes())
    data[data.index(MAGIC) + 30] ^= 0xFF
    journal.write_bytes(data)
    service.next_answers.append(Answer(503, headers={"retry-after": "0"}))
    code, errors = once(tmp_path, "--service", service.url)
    assert code == 0, errors
    (stored,) = service.chunks("r").values()
    assert [chunk.id.index for chunk in stored] == [1, 2, 3, 4]
    assert errors.count("is lost from the journal, so the service cannot know from which step it began") == 1


@pytest.mark.parametrize(
    "lie",
    [
        Answer(200, b"<html>log in here</html>"),
        Answer(200, b'{"duplicate": false}'),
        Answer(204),
        Answer(301, headers={"location": "/elsewhere"}),
        Answer(404, b"nothing here"),
        Answer(429, headers={"retry-after": "0"}),
        Answer(500, b"x" * 100_000),
        Answer(503, headers={"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}),
        Answer(500, stored=True),
    ],
    ids=lambda lie: f"{lie.status} {lie.body[:10]!r}{lie.stored}",
)
def test_what_is_no_acknowledgement_is_tried_again(tmp_path: Path, service: LoopbackService, lie: Answer) -> None:
    record(tmp_path, "r", 1, 3)
    service.next_answers.append(lie)
    assert once(tmp_path, "--service", service.url)[0] == 0
    assert steps_of(service, "r") == [1, 2, 3]
    assert service.duplicates == lie.stored, "stored although it answered 500: sent again, known, kept once"


def test_once_waits_as_long_as_the_service_asks(tmp_path: Path, service: LoopbackService) -> None:
    record(tmp_path, "r", 1, 3)
    service.next_answers.append(Answer(503, headers={"retry-after": "3600"}))
    process = sidecar(tmp_path, "--service", service.url, "--once")
    assert process.stderr is not None
    while (found := re.search(r"next try in (\d+)", process.stderr.readline())) is None:
        pass
    assert int(found[1]) >= 600, "the longest that a service may ask for"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 4, errors
    assert not service.stored


def test_a_killed_sidecar_goes_on_where_it_was(tmp_path: Path, service: LoopbackService) -> None:
    record(tmp_path, "r", 1, 500)
    for wanted in (20, 50, 80):
        process = sidecar(tmp_path, "--service", service.url, "--poll-seconds", 0.05)
        service.wait_for(lambda wanted=wanted: len(service.stored) >= wanted)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert once(tmp_path, "--service", service.url)[0] == 0
    assert steps_of(service, "r") == list(range(1, 501))
    assert service.conflicts == 0
    assert service.duplicates <= 3, "one chunk in flight per kill"


def test_a_service_that_comes_later_gets_everything(
    tmp_path: Path, start_service: Callable[..., LoopbackService]
) -> None:
    service = start_service(listens=False)
    record(tmp_path, "r", 1, 20)
    process = sidecar(tmp_path, "--service", service.url, "--poll-seconds", 0.05)
    assert process.stderr is not None
    while "does not answer" not in process.stderr.readline():
        pass
    service.listen()
    service.wait_for(lambda: len(service.stored) >= 6)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert re.search(r"takes chunks again after [1-9]\d* failed tries", errors)
    assert steps_of(service, "r") == list(range(1, 21))


def test_new_runs_are_found_and_sigterm_drains(tmp_path: Path, service: LoopbackService) -> None:
    process = sidecar(tmp_path, "--service", service.url, "--poll-seconds", 0.05)
    recorder = record(tmp_path, "late", 1, 7, close=False)
    service.wait_for(lambda: any(identity[1] == "late" for identity in service.stored))
    recorder.record(frames(8, 1))
    recorder.flush()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "all that is sealed is shipped" in errors
    assert steps_of(service, "late") == list(range(1, 9))
    assert list(tmp_path.rglob("*.journal")), "the trainer lives, so its journal stays"
    recorder.close()
    assert once(tmp_path, "--service", service.url)[0] == 0
    assert not list(tmp_path.rglob("*.journal"))


def test_a_sidecar_waits_for_a_trainer_that_starts_after_it(tmp_path: Path, service: LoopbackService) -> None:
    journal = tmp_path / "journal"
    process = sidecar(journal, "--service", service.url, "--status-port", 0, "--poll-seconds", 0.05)
    assert process.stderr is not None
    said = address = ""
    while not (address and "there is no folder" in said):
        line = process.stderr.readline()
        assert line, said
        said += line
        if found := re.search(r"status on (http://\S+)/metrics", line):
            address = found[1]
    assert f"there is no folder {journal} yet: waiting for the trainer to make it" in said
    status, text = read(address + "/healthz")
    assert (status, text.splitlines()[0]) == (200, "ok")
    assert "compare the path with the journal of the trainer" in text
    assert "lossguard_sidecar_folders_in_trouble 1\n" in read(address + "/metrics")[1]
    record(journal, "late", 1, 3)
    service.wait_for(lambda: bool(service.stored))
    assert read(address + "/healthz") == (200, "ok\n")
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert "there is no folder" not in rest, "it is said once"
    assert steps_of(service, "late") == [1, 2, 3]


def test_a_folder_that_never_came_is_told_at_the_end_and_holds_up_nobody(
    tmp_path: Path, service: LoopbackService
) -> None:
    record(tmp_path / "good", "r", 1, 3)
    process = sidecar(tmp_path / "good", tmp_path / "typo", "--service", service.url, "--poll-seconds", 0.05)
    service.wait_for(lambda: bool(service.stored))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.count("there is no folder") == 2, "when it began, and at the end"
    assert "all that is sealed is shipped" not in errors
    assert steps_of(service, "r") == [1, 2, 3]


def test_the_second_signal_ends_a_drain_that_gets_nowhere(tmp_path: Path) -> None:
    record(tmp_path, "r", 1, 3)
    process = sidecar(tmp_path, "--service", "http://127.0.0.1:9", "--drain-seconds", 3600, "--poll-seconds", 0.05)
    assert process.stderr is not None
    for said, sent in (("does not answer", signal.SIGINT), ("told to end", signal.SIGTERM)):
        while said not in process.stderr.readline():
            pass
        process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "the chunks stay on disk" in errors


def test_once_does_not_call_shipped_what_another_process_still_has(tmp_path: Path, service: LoopbackService) -> None:
    record(tmp_path, "r", 1, 12)
    other = RunLock(tmp_path / "ads" / "r")
    assert other.acquire()
    code, errors = once(tmp_path, "--service", service.url, "--poll-seconds", 0.02)
    assert code == 4, errors
    assert "ads/r: not shipped: another process has it" in errors
    assert "all that is sealed is shipped" not in errors
    other.release()
    assert once(tmp_path, "--service", service.url)[0] == 0
    assert steps_of(service, "r") == list(range(1, 13))


def test_a_run_of_another_process_that_has_shipped_it_holds_up_nobody(tmp_path: Path, service: LoopbackService) -> None:
    trainer = record(tmp_path, "r", 1, 12, service=service.url, close=False)
    reader = AttemptReader(tmp_path / "ads" / "r" / trainer.attempt)
    service.wait_for(lambda: len(service.stored) == 3)
    while reader.backlog_bytes():
        reader = AttemptReader(reader.folder)
    code, errors = once(tmp_path, "--service", service.url, "--poll-seconds", 0.02)
    assert (code, "all that is sealed is shipped" in errors) == (0, True), errors
    trainer.close()


def test_a_journal_below_the_named_folder_is_told_of(tmp_path: Path, service: LoopbackService) -> None:
    record(tmp_path / "journal", "r", 1, 3)
    _, errors = once(tmp_path, "--service", service.url)
    assert f"{tmp_path / 'journal'} is a journal of its own, below {tmp_path}" in errors
    code, errors = once(tmp_path / "journal", "--service", service.url)
    assert (code, "of its own" in errors) == (0, False), errors


def test_at_its_end_a_sidecar_ships_what_the_trainer_lets_go_of(tmp_path: Path, service: LoopbackService) -> None:
    record(tmp_path, "r", 1, 12)
    trainer = RunLock(tmp_path / "ads" / "r")
    assert trainer.acquire()
    process = sidecar(tmp_path, "--service", service.url, "--poll-seconds", 0.02, "--drain-seconds", 3600)
    assert process.stderr is not None
    for said in ("is shipped by another process", "told to end"):
        while said not in process.stderr.readline():
            pass
        if said.startswith("is shipped"):
            process.send_signal(signal.SIGTERM)
    trainer.release()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert steps_of(service, "r") == list(range(1, 13))


def test_a_living_trainer_is_reported(tmp_path: Path, service: LoopbackService) -> None:
    recorder = record(tmp_path, "r", 1, 7, close=False)
    process = sidecar(tmp_path, "--service", service.url, "--poll-seconds", 0.05)
    service.wait_for(lambda: bool(service.heartbeats))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    project, run, document = service.heartbeats[0]
    assert (project, run, document["attempt"], document["last_step"]) == ("ads", "r", recorder.attempt, 7)
    assert document["time"] > 1e9
    recorder.close()


def test_a_run_that_fails_does_not_hold_up_the_others(tmp_path: Path, service: LoopbackService) -> None:
    for run in ("bad", "good"):
        record(tmp_path, run, 1, 12)
    service.always = lambda identity: Answer(500) if identity[1] == "bad" else None
    code, errors = once(tmp_path, "--service", service.url, "--workers", 1)
    assert code == 4
    assert "ads/bad: not shipped: 500" in errors
    assert steps_of(service, "good") == list(range(1, 13))
