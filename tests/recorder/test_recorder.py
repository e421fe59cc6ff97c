"""The recorder: never blocks, never raises, counts what it drops, and leaves sealed chunks behind whatever happens."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lossguard
from hanging_disk import HangingDisk
from lossguard.journal.files import LocalFiles
from lossguard.journal.layout import attempt_folders
from lossguard.journal.reader import AttemptReader
from lossguard.recorder import Recorder
from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, Chunk, decode
from lossguard.wire.frame import Frames, Schema

pytestmark = pytest.mark.usefixtures("no_leaks")
SCHEMA = Schema(("loss",), ("a", "b"), ("gradient_norm",))


def frames(first: int, count: int = 1, schema: Schema = SCHEMA) -> Frames:
    steps = np.arange(first, first + count)
    return Frames.of(
        schema,
        steps,
        np.full((count, len(schema.scalars)), 0.5),
        np.ones((count, len(schema.layers), len(schema.stats)), np.float32),
    )


def sealed(root: Path, run: str = "r") -> list[Chunk]:
    """All sealed chunks of the run's attempts, in order; leaves them there."""
    chunks = []
    readers = sorted(map(AttemptReader, attempt_folders(root / "p" / run)), key=lambda reader: reader.order)
    for reader in readers:
        while (record := reader.next()) is not None:
            chunks.append(decode(record.chunk))
            reader._offset = record.end
        reader.close()
    return chunks


def steps_in(chunks: list[Chunk]) -> list[int]:
    return [int(step) for chunk in chunks for step in chunk.frames.steps]


@pytest.fixture
def recorder(tmp_path: Path, guard_raises: None) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path, "p", "r", seal_frames=8, seal_seconds=3600.0)
    yield recorder
    recorder.close()


def test_the_first_chunk_says_what_begins_and_the_last_what_ended(tmp_path: Path, recorder: Recorder) -> None:
    recorder.record(frames(1, 20))
    recorder.close("interrupted", skipped_steps=3)
    chunks = sealed(tmp_path)
    assert isinstance(chunks[0].events[0], AttemptStart)
    last = chunks[-1].events[-1]
    assert isinstance(last, AttemptStop)
    assert (last.step, last.reason, last.skipped_steps) == (20, "interrupted", 3)
    assert [chunk.id.index for chunk in chunks] == list(range(len(chunks)))
    assert [len(chunk.frames) for chunk in chunks] == [0, 8, 8, 4]


def test_a_changed_schema_begins_a_new_chunk(tmp_path: Path, recorder: Recorder) -> None:
    wider = Schema(("loss", "auc"), ("a", "b"), ("gradient_norm",))
    recorder.record(frames(1, 3))
    recorder.record(frames(4, 2, wider))
    recorder.record(frames(6, 1))
    assert recorder.flush()
    chunks = sealed(tmp_path)[1:]
    assert [chunk.frames.schema for chunk in chunks] == [SCHEMA, wider, SCHEMA]
    assert steps_in(chunks) == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_is_sealed_with_the_frames_before_it(tmp_path: Path, recorder: Recorder) -> None:
    recorder.record(frames(1, 3))
    recorder.event(Checkpoint(3, 1.0, "ckpt", True))
    recorder.record(frames(4, 1))
    recorder.flush()
    chunks = sealed(tmp_path)
    assert steps_in([chunks[1]]) == [1, 2, 3]
    assert chunks[1].events == (Checkpoint(3, 1.0, "ckpt", True),)


def test_steps_that_do_not_increase_are_dropped_and_counted(tmp_path: Path, recorder: Recorder) -> None:
    assert recorder.record(frames(1, 5))
    assert not recorder.record(frames(3, 2))
    assert not recorder.record(frames(5, 3)), "partly late"
    recorder.close()
    chunks = sealed(tmp_path)
    assert steps_in(chunks) == [1, 2, 3, 4, 5, 6, 7]
    assert sum(chunk.drops.get("out_of_order", 0) for chunk in chunks) == 3
    assert recorder.counters["dropped_out_of_order"] == 3


def test_after_close_nothing_is_taken(recorder: Recorder) -> None:
    recorder.close()
    assert not recorder.record(frames(1))
    assert not recorder.event(Checkpoint(1, 1.0, "ckpt", True))
    recorder.close()
    assert recorder.counters["dropped_closed"] == 1


def test_frames_are_sealed_after_seal_seconds(tmp_path: Path, guard_raises: None) -> None:
    recorder = Recorder(tmp_path, "p", "r", seal_seconds=0.01)
    recorder.record(frames(1, 2))
    with recorder._flushed:
        assert recorder._flushed.wait_for(lambda: recorder.counters["frames_sealed"] == 2, 30.0)
    recorder.close()


def test_a_full_queue_drops_and_says_so(tmp_path: Path, guard_raises: None) -> None:
    gate = Gate()
    recorder = Recorder(tmp_path, "p", "r", seal_frames=1, queue_bytes=1024, files=gate)
    gate.wait_until_reached()
    answers = [recorder.record(frames(step)) for step in range(1, 101)]
    gate.open()
    recorder.close()
    kept = answers.count(True)
    assert 0 < kept < 100
    chunks = sealed(tmp_path)
    assert steps_in(chunks) == [step for step, kept in enumerate(answers, 1) if kept]
    assert sum(chunk.drops.get("queue_full", 0) for chunk in chunks) == 100 - kept


class Gate(LocalFiles):
    """A disk that is stuck in its first sync until `open`."""

    def __init__(self) -> None:
        from threading import Event

        self._reached, self._opened = Event(), Event()

    def sync(self, file: int) -> None:
        self._reached.set()
        assert self._opened.wait(30.0)
        super().sync(file)

    def wait_until_reached(self) -> None:
        assert self._reached.wait(30.0)

    def open(self) -> None:
        self._opened.set()


class FullDisk(LocalFiles):
    """A disk without space until `full` is False."""

    def __init__(self, number: int = errno.ENOSPC) -> None:
        self.full = True
        self.number = number

    def append(self, file: int, data: memoryview) -> int:
        if self.full:
            raise OSError(self.number, os.strerror(self.number))
        return super().append(file, data)


def test_a_disk_that_is_full_for_a_while_costs_nothing_that_memory_can_hold(tmp_path: Path, guard_raises: None) -> None:
    disk = FullDisk()
    recorder = Recorder(tmp_path, "p", "r", seal_frames=4, files=disk)
    recorder.record(frames(1, 10))
    assert not recorder.flush()
    disk.full = False
    recorder.record(frames(11, 2))
    assert recorder.flush()
    recorder.close()
    chunks = sealed(tmp_path)
    assert steps_in(chunks) == list(range(1, 13))
    assert [chunk.id.index for chunk in chunks] == list(range(len(chunks)))
    assert not any(chunk.drops for chunk in chunks)


@pytest.mark.parametrize(("number", "reason"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "disk_error")])
def test_what_memory_cannot_hold_is_dropped_with_the_disks_reason(
    tmp_path: Path, guard_raises: None, number: int, reason: str
) -> None:
    disk = FullDisk(number)
    recorder = Recorder(tmp_path, "p", "r", seal_frames=4, queue_bytes=1024, files=disk)
    assert not recorder.flush()
    dropped = [recorder.record(frames(step)) for step in range(1, 201)].count(False)
    assert dropped > 0
    disk.full = False
    assert recorder.flush()
    recorder.close()
    chunks = sealed(tmp_path)
    assert sum(chunk.drops.get(reason, 0) for chunk in chunks) == dropped
    assert len(steps_in(chunks)) == 200 - dropped


def test_a_disk_that_stays_full_does_not_hold_up_the_end(tmp_path: Path, guard_raises: None) -> None:
    recorder = Recorder(tmp_path, "p", "r", files=FullDisk())
    recorder.record(frames(1, 3))
    recorder.close()
    assert recorder.counters["dropped_disk_full"] == 3


def test_a_disk_that_hangs_holds_up_nobody_and_the_end_says_what_it_has_not_taken(
    tmp_path: Path, guard_raises: None, caplog: pytest.LogCaptureFixture
) -> None:
    disk = HangingDisk()
    recorder = Recorder(tmp_path, "p", "r", seal_frames=4, queue_bytes=1024, files=disk)
    recorder.record(frames(1, 4))
    assert disk.begun.wait(60.0)
    # From here on the recorder's thread waits for the disk, and this one never for that.
    taken = 4 + [recorder.record(frames(step)) for step in range(5, 101)].count(True)
    recorder.seal()
    assert not recorder.flush(0.0)
    recorder.close(timeout_seconds=0.0)
    assert recorder.counters["dropped_queue_full"] == 100 - taken > 0
    assert f"has not taken the last {taken} frames of run r" in caplog.text
    disk.let_go.set()
    recorder._thread.join()
    assert steps_in(sealed(tmp_path)) == list(range(1, taken + 1))


def test_a_file_system_that_does_not_answer_holds_up_no_beginning(
    tmp_path: Path, guard_raises: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, real = threading.Event(), Path.mkdir

    def mkdir(path: Path, *arguments: Any, **named: Any) -> None:
        let_go.wait()
        real(path, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr("lossguard.recorder.CHECK_SECONDS", 0.0)
    recorder = Recorder(tmp_path, "p", "r")
    assert recorder.record(frames(1, 3))
    assert "does not answer" in caplog.text
    let_go.set()
    recorder.close()
    assert steps_in(sealed(tmp_path)) == [1, 2, 3]


@pytest.mark.parametrize("death", [SystemExit, KeyboardInterrupt, MemoryError, ZeroDivisionError])
def test_the_death_of_the_recorders_thread_is_told_and_what_it_had_is_counted(
    tmp_path: Path, death: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Deadly(HangingDisk):
        def append(self, file: int, data: memoryview) -> int:
            self.begun.set()
            self.let_go.wait()
            raise death

    disk = Deadly()
    recorder = Recorder(tmp_path, "p", "r", seal_frames=4, files=disk)
    assert disk.begun.wait(60.0)  # the event that begins the attempt
    assert recorder.record(frames(1, 6))
    disk.let_go.set()
    recorder._thread.join()
    assert "Recorder's thread failed" in caplog.text
    assert not recorder.record(frames(7, 2))
    assert not recorder.flush(60.0)
    recorder.close()
    assert recorder.counters["dropped_internal_error"] == 6
    assert recorder.counters["dropped_closed"] == 2


def test_the_bound_of_the_run_counts_all_its_attempts(tmp_path: Path, guard_raises: None) -> None:
    counted = 0
    for attempt in range(4):
        recorder = Recorder(tmp_path, "p", "r", seal_frames=1, journal_bytes=1 << 16, queue_bytes=1 << 16)
        for step in range(1, 301):
            recorder.record(frames(step))
        recorder.close()
        counted += recorder.counters.get("dropped_journal_full", 0)
        files = sum(path.stat().st_size for path in tmp_path.rglob("*.journal"))
        assert files <= (1 << 16) + 32 * (attempt + 1)
    assert counted > 0


def test_a_frame_that_no_chunk_can_hold_is_dropped_and_the_rest_goes_on(tmp_path: Path, guard_raises: None) -> None:
    recorder = Recorder(tmp_path, "p", "r")
    recorder.record(frames(1))
    recorder.record(frames(2, 1, Schema(("tab\t",))))
    recorder.record(frames(3))
    recorder.close()
    chunks = sealed(tmp_path)
    assert steps_in(chunks) == [1, 3]
    assert sum(chunk.drops.get("not_encodable", 0) for chunk in chunks) == 1


def test_an_error_of_ours_never_reaches_the_trainer(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "p", "r")
    assert recorder.record("no frames") is False  # type: ignore[arg-type]
    assert recorder.record(frames(1))
    recorder.close()
    assert recorder.counters["dropped_internal_error"] == 1
    assert recorder.counters["errors_swallowed"] >= 1


def test_an_event_that_no_chunk_can_carry_is_refused_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path, "p", "r")
    assert not recorder.event(Checkpoint(1, 1.0, "two\nlines", True))
    recorder.close()
    assert "printable" in caplog.text
    assert not any(isinstance(event, Checkpoint) for chunk in sealed(tmp_path) for event in chunk.events)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("project", "a/b"),
        ("run", ""),
        ("run", ".hidden"),
        ("start_step", -1),
        ("start_step", True),
        ("seal_frames", 0),
        ("seal_seconds", 0.0),
        ("seal_seconds", float("nan")),
        ("journal_bytes", 10),
        ("mantissa_bits", 24),
        ("queue_bytes", 0),
        ("config", {"a": object()}),
        ("config", {"a": "x" * (1 << 20)}),
        ("config", {"seed": 1 << 63}),
        ("config", {"text": "nul \0"}),
        ("service", "localhost:8080"),
        ("token", "two\nlines"),
        ("token", 5),
        ("seal_seconds", "1"),
        ("config", ["team"]),
        ("service", 8080),
    ],
)
def test_misuse_raises_early_and_names_the_argument(tmp_path: Path, argument: str, value: object) -> None:
    arguments: dict[str, object] = {"project": "p", "run": "r"} | {argument: value}
    if argument == "token":
        arguments["service"] = "http://127.0.0.1:9"
    with pytest.raises(ValueError, match=rf"^{argument}:"):
        Recorder(tmp_path, **arguments)  # type: ignore[arg-type]


def test_a_directory_that_is_a_file_is_misuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossguard.recorder.CHECK_SECONDS", 300.0)  # a slow disk is no matter of this test
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^directory:"):
        Recorder(tmp_path / "file" / "journal", "p", "r")


def test_nonfinite_config_travels_as_text(tmp_path: Path, guard_raises: None) -> None:
    Recorder(tmp_path, "p", "r", config={"clip": float("inf")}).close()
    (start,) = sealed(tmp_path)[0].events
    assert isinstance(start, AttemptStart)
    assert start.config == {"clip": "Infinity"}


def test_absent_is_not_nan_in_a_run(tmp_path: Path, guard_raises: None) -> None:
    with lossguard.Run("p", "r", journal=tmp_path, tasks={"click": "binary"}, seal_seconds=3600.0) as run:
        assert run.log(1, {"loss": float("nan"), "auc": 0.5}, {"a": {"g": 1.0, "w": 2.0}, "b": {"g": 3.0, "w": 4.0}})
        assert run.log(2, {"loss": 0.5})
        assert run.log(3, {"loss": 0.5}, {"a": {"g": float("inf")}, "b": {"g": 1.0}})
    chunk = next(chunk for chunk in sealed(tmp_path) if len(chunk.frames))
    found = chunk.frames
    assert found.schema == Schema(("loss", "auc"), ("a", "b"), ("g", "w"))
    assert found.scalars_present.tolist() == [[True, True], [True, False], [True, False]]
    assert found.stats_present.tolist() == [[True, True], [False, False], [True, False]]
    assert np.isnan(found.scalars[0, 0])
    assert found.stats[2, 0, 0] == np.inf


@pytest.mark.parametrize("stats", [("g",), ("g", "w", "u")])
def test_a_step_with_the_names_of_the_last_one_is_what_any_other_order_of_them_is(
    tmp_path: Path, guard_raises: None, stats: tuple[str, ...]
) -> None:
    numbers = iter([1, np.float32(0.1), float("nan"), -float("inf"), "0.5", np.array(2.5), True, 1e-30, -0.0])
    layers = {layer: {name: next(numbers) for name in stats} for layer in "abc"}
    backwards = {layer: dict(reversed(layers[layer].items())) for layer in "cba"}
    with lossguard.Run("p", "r", journal=tmp_path, mantissa_bits=23) as run:
        for step, given in enumerate((layers, layers, backwards, layers), 1):
            assert run.log(step, {"loss": 0.5}, given)
    (found,) = (chunk.frames for chunk in sealed(tmp_path) if len(chunk.frames))
    assert found.schema == Schema(("loss",), ("a", "b", "c"), stats)
    assert found.stats_present.all()
    for step in range(4):
        assert found.stats[step].tobytes() == found.stats[0].tobytes()
    assert found.stats[0, 0, 0] == 1.0


def test_a_wrong_value_in_a_step_like_the_last_one_is_told_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lossguard.guard.swallow", lambda entry, error: said.append(f"{entry}: {error}"))
    with lossguard.Run("p", "r", journal=tmp_path) as run:
        assert run.log(1, {"loss": 0.5}, {"a": {"g": 1.0, "w": 1.0}})
        assert run.log(2, {"loss": 0.5}, {"a": {"g": None, "w": 1.0}}) is False  # type: ignore[dict-item]
        assert run.log(3, {"loss": 0.5}, {"a": {"g": 1.0, "u": 2.0}})  # other stats, which is no mistake
        assert run.counters["dropped_not_encodable"] == 1
    assert said == ["Run.log: layers['a']: 'g' must be one number, got 'None'"]


def test_a_loop_that_counts_from_0_is_told_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with lossguard.Run("p", "r", journal=tmp_path) as run:
        assert not run.log(0, {"loss": 0.7})
        assert run.log(1, {"loss": 0.6})
        assert not run.log(1, {"loss": 0.6})
        assert run.counters["dropped_out_of_order"] == 2
    told = [record.getMessage() for record in caplog.records if "is not recorded" in record.getMessage()]
    assert len(told) == 1
    assert "step 0 of run r" in told[0]
    assert told[0].endswith("log step + 1")


def test_other_layers_are_another_chunk(tmp_path: Path, guard_raises: None) -> None:
    with lossguard.Run("p", "r", journal=tmp_path) as run:
        run.log(1, {"loss": 1}, {"a": {"g": 1}})
        run.log(2, {"loss": 1}, {"a": {"g": 1}, "b": {"g": 1}})
        run.log(3, {"loss": 1}, {"a": {"g": 1}})
    layers = [chunk.frames.schema.layers for chunk in sealed(tmp_path) if len(chunk.frames)]
    assert layers == [("a",), ("a", "b"), ("a",)]


def test_an_exception_in_the_block_is_a_failed_attempt(tmp_path: Path) -> None:
    def train() -> None:
        with lossguard.Run("p", "r", journal=tmp_path):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    stop = sealed(tmp_path)[-1].events[-1]
    assert isinstance(stop, AttemptStop)
    assert stop.reason == "failed"


def test_a_run_refuses_unknown_kinds_of_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^tasks:"):
        lossguard.Run("p", "r", journal=tmp_path, tasks={"click": "ordinal"})


@pytest.mark.parametrize(
    ("argument", "value"),
    [("journal", 5), ("tasks", ["click"]), ("tasks", "click"), ("config", {1, 2}), ("token", 5), ("run", 5)],
)
def test_a_run_names_the_argument_that_is_wrong(tmp_path: Path, argument: str, value: object) -> None:
    arguments: dict[str, object] = {"project": "p", "run": "r", "journal": tmp_path} | {argument: value}
    with pytest.raises(ValueError, match=rf"^{argument}: must "):
        lossguard.Run(**arguments)  # type: ignore[arg-type]


def test_a_run_that_is_misspelt_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Run has no argument 'taks'; further ones are seal_frames"):
        lossguard.Run("p", "r", journal=tmp_path, taks={})


def test_what_cannot_be_logged_is_a_sentence_and_a_counted_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lossguard.guard.swallow", lambda entry, error: said.append(f"{entry}: {error}"))
    with lossguard.Run("p", "r", journal=tmp_path) as run:
        wrong: list[tuple[object, ...]] = [
            ("1", {"loss": 1.0}),
            (1.5, {"loss": 1.0}),
            (1, [1.0]),
            (1, {"loss": None}),
            (1, {5: 1.0}),
            (1, {"loss": 1.0}, {"dense": 3.0}),
        ]
        for arguments in wrong:
            assert run.log(*arguments) is False  # type: ignore[arg-type]
        assert run.log(np.int64(1), {"loss": np.float32(1.0)})
        assert run.log(2.0, {"loss": 1.0})  # type: ignore[arg-type]
    assert [one.removeprefix("Run.log: ") for one in said] == [
        "step: must be a whole number, got '1'",
        "step: must be a whole number, got 1.5",
        "scalars: must map names to numbers, got [1.0]",
        "scalars: 'loss' must be one number, got 'None'",
        "scalars: names must be text, got 5",
        "layers['dense']: must map names to numbers, got 3.0",
    ]
    assert run.counters["dropped_not_encodable"] == len(wrong)
    assert steps_in(sealed(tmp_path)) == [1, 2]


def test_an_attempt_that_ends_for_no_known_reason_was_interrupted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path, "p", "r")
    recorder.close("bored")  # type: ignore[arg-type]
    assert "reason must be one of finished, interrupted, failed, got 'bored'" in caplog.text
    last = sealed(tmp_path)[-1].events[-1]
    assert isinstance(last, AttemptStop)
    assert last.reason == "interrupted"
