"""The reader and the locks, beside the laws."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lossguard.journal.layout import CURSOR_NAME
from lossguard.journal.reader import AttemptReader, RunLock, remove_stillborn
from lossguard.journal.writer import JournalWriter

pytestmark = pytest.mark.usefixtures("no_leaks")


def writer(root: Path, attempt: str = "a" * 32) -> JournalWriter:
    return JournalWriter(root, "p", "r", attempt, started=1.0)


def test_one_shipper_per_run(tmp_path: Path) -> None:
    one, other = RunLock(tmp_path), RunLock(tmp_path)
    assert one.acquire()
    assert one.acquire()
    assert not other.acquire()
    one.release()
    assert other.acquire()
    other.release()


def test_a_record_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    journal = writer(tmp_path)
    journal.append(b"first")
    reader = AttemptReader(journal.folder)
    record = reader.next()
    assert record is not None
    reader.acknowledge(record)
    (segment,) = journal.folder.glob("*.journal")
    whole = segment.read_bytes()
    journal.append(b"second")
    grown = segment.read_bytes()
    for size in range(len(whole), len(grown)):
        segment.write_bytes(grown[:size])
        assert reader.next() is None
        assert reader.cut.tails == 0
    segment.write_bytes(grown)
    second = reader.next()
    assert second is not None
    assert (second.index, second.chunk) == (1, b"second")
    journal.close()
    reader.close()


@pytest.mark.parametrize("deleted", ["p", "p/r", "p/r/{attempt}", "p/r/{attempt}/lock", "p/r/{attempt}/*.journal"])
@pytest.mark.parametrize("knows_it", [True, False])
def test_a_journal_that_is_deleted_under_its_trainer_goes_on_in_new_files(
    tmp_path: Path, deleted: str, knows_it: bool
) -> None:
    journal = writer(tmp_path)
    reader = AttemptReader(journal.folder)
    for index in range(3):
        journal.append(b"%d" % index)
    if knows_it:
        reader.acknowledge(reader.next() or pytest.fail("nothing was sealed"))
    for found in tmp_path.glob(deleted.format(attempt="a" * 32)):
        shutil.rmtree(found) if found.is_dir() else found.unlink()
    assert journal.append(b"3") == 3
    assert journal.append(b"4") == 4
    for one in (reader, AttemptReader(journal.folder)):
        assert one.alive()
        there = []
        while (record := one.next()) is not None:
            there.append((record.index, record.chunk))
            one.acknowledge(record)
        assert there[-2:] == [(3, b"3"), (4, b"4")]
        if not deleted.endswith("lock"):
            assert len(there) == 2, "what was deleted is gone"
        assert not one.remove_if_done()
        one.close()
        (journal.folder / CURSOR_NAME).unlink()
    journal.close()


def test_acknowledged_segments_are_deleted_while_the_trainer_lives(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path, "p", "r", "a" * 32, started=1.0, segment_bytes=100)
    for _ in range(10):
        journal.append(bytes(90))
    assert len(list(journal.folder.glob("*.journal"))) == 10
    reader = AttemptReader(journal.folder)
    while (record := reader.next()) is not None:
        reader.acknowledge(record)
    assert len(list(journal.folder.glob("*.journal"))) == 1
    assert not reader.remove_if_done()
    journal.close()
    assert reader.remove_if_done()
    assert not journal.folder.exists()


def test_later_attempts_have_a_higher_order_whatever_the_clock_says(tmp_path: Path) -> None:
    orders = []
    for number in range(3):
        journal = JournalWriter(tmp_path, "p", "r", f"{9 - number:032x}", started=100.0 - number)
        journal.append(b"x")
        orders.append(AttemptReader(journal.folder).order[0])
        journal.close()
    assert orders == [1, 2, 3]


def test_a_writer_cannot_take_another_ones_attempt(tmp_path: Path) -> None:
    journal = writer(tmp_path)
    journal.append(b"x")
    with pytest.raises(OSError, match=r"not empty|exists"):
        writer(tmp_path)
    journal.close()


def test_attempts_that_died_unborn_are_cleared_after_an_hour(tmp_path: Path) -> None:
    folder = tmp_path / ".new-abc"
    folder.mkdir()
    now = folder.stat().st_mtime
    remove_stillborn(tmp_path, now + 3599)
    assert folder.exists()
    remove_stillborn(tmp_path, now + 3601)
    assert not folder.exists()


def test_a_broken_cursor_begins_again(tmp_path: Path) -> None:
    journal = writer(tmp_path)
    journal.append(b"x")
    journal.close()
    (journal.folder / "shipped.json").write_text('{"segment": ')
    reader = AttemptReader(journal.folder)
    record = reader.next()
    assert record is not None
    assert record.index == 0
    reader.close()


@pytest.mark.parametrize(("volume", "segments"), [(8 * 4096, 8), (0, 1), (1 << 40, 1)])
def test_on_a_small_volume_no_segment_is_most_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, volume: int, segments: int
) -> None:
    # Mocked: a file system of its own takes rights that a test has not.
    said = SimpleNamespace(f_blocks=volume // 4096, f_frsize=4096)
    monkeypatch.setattr("lossguard.journal.writer.os.statvfs", lambda folder: said)
    journal = JournalWriter(tmp_path, "p", "r", "a" * 32, started=1.0)
    for _ in range(8):
        journal.append(b"x" * 4096)
    journal.close()
    assert len(list(journal.folder.glob("*.journal"))) == segments
