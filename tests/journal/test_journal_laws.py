"""The journal against a model, under random actions on a faulty disk."""

import os
import shutil
import tempfile
from pathlib import Path

from faulty_files import Crash, FaultyFiles
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lossguard.journal.layout import attempt_folders, folder_bytes
from lossguard.journal.reader import AttemptReader
from lossguard.journal.writer import JournalFull, JournalWriter

BOUND = 20_000
FAULTS = st.sampled_from(["short", "full", "broken", "crash"])


class JournalMachine(RuleBasedStateMachine):
    """One run: attempts begin, append, die and end; a shipper reads, acknowledges, dies and comes back.

    The model is two lists per attempt: what was sealed (append returned) and what was acknowledged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.run = self.root / "p" / "r"
        self.files = FaultyFiles()
        self.writer: JournalWriter | None = None
        self.attempts: list[str] = []
        self.sealed: dict[str, list[bytes]] = {}
        self.shipped: dict[str, dict[int, bytes]] = {}
        self.readers: dict[str, AttemptReader] = {}
        self.ended: set[str] = set()

    @precondition(lambda self: self.writer is None)
    @rule(segment_bytes=st.sampled_from([50, 500, 5000]))
    def begin(self, segment_bytes: int) -> None:
        attempt = f"{len(self.attempts):032x}"
        self.files = FaultyFiles()
        self.writer = JournalWriter(
            self.root,
            "p",
            "r",
            attempt,
            started=0.0,
            journal_bytes=BOUND,
            segment_bytes=segment_bytes,
            files=self.files,
        )
        self.attempts.append(attempt)
        self.sealed[attempt], self.shipped[attempt] = [], {}

    @precondition(lambda self: self.writer is not None)
    @rule(chunk=st.binary(min_size=1, max_size=400), faults=st.lists(st.none() | FAULTS, max_size=6))
    def append(self, chunk: bytes, faults: list[str | None]) -> None:
        assert self.writer is not None
        attempt = self.attempts[-1]
        waiting = list(reversed(faults))
        self.files.draw = lambda operation: waiting.pop() if waiting else None
        before = self.writer.next_index
        try:
            index = self.writer.append(chunk)
        except (OSError, JournalFull):
            assert self.writer.next_index == before, "an index is used up by a sealed chunk only"
        except Crash:
            # A chunk whose append did not return may be there whole (it died after the last byte) or not at all.
            if self.writer.next_index > before:
                self.sealed[attempt].append(chunk)
            self.die()
        else:
            assert index == before
            self.sealed[attempt].append(chunk)
        finally:
            self.files.draw = lambda operation: None

    @precondition(lambda self: self.writer is not None)
    @rule()
    def die(self) -> None:
        assert self.writer is not None
        self.files.close_all()
        self.writer._segment = None
        self.writer.close()
        self.writer = None
        self.ended.add(self.attempts[-1])

    @precondition(lambda self: self.writer is not None)
    @rule()
    def end(self) -> None:
        assert self.writer is not None
        self.writer.close()
        self.writer = None
        self.ended.add(self.attempts[-1])

    def reader(self, attempt: str) -> AttemptReader | None:
        if attempt not in self.readers:
            folder = self.run / attempt
            if not folder.is_dir():
                return None
            self.readers[attempt] = AttemptReader(folder)
        return self.readers[attempt]

    @precondition(lambda self: self.attempts)
    @rule(which=st.integers(0, 100), count=st.integers(1, 10), forget=st.booleans())
    def ship(self, which: int, count: int, forget: bool) -> None:
        attempt = self.attempts[which % len(self.attempts)]
        reader = self.reader(attempt)
        if reader is None:
            return
        for _ in range(count):
            record = reader.next()
            if record is None:
                break
            # At least once: it may come again after a lost cursor, with the same bytes.
            assert self.shipped[attempt].setdefault(record.index, record.chunk) == record.chunk
            reader.acknowledge(record)
        if forget:
            reader.close()
            del self.readers[attempt]

    @precondition(lambda self: self.attempts)
    @rule(which=st.integers(0, 100))
    def lose_cursor(self, which: int) -> None:
        attempt = self.attempts[which % len(self.attempts)]
        if attempt in self.readers:
            self.readers.pop(attempt).close()
        (self.run / attempt / "shipped.json").unlink(missing_ok=True)

    @precondition(lambda self: self.attempts)
    @rule(which=st.integers(0, 100))
    def remove(self, which: int) -> None:
        attempt = self.attempts[which % len(self.attempts)]
        reader = self.reader(attempt)
        if reader is not None and reader.remove_if_done():
            assert attempt in self.ended, "a living attempt is never removed"
            assert self.shipped[attempt] == dict(enumerate(self.sealed[attempt])), "nothing unshipped is removed"
            del self.readers[attempt]

    @invariant()
    def what_is_shipped_was_sealed(self) -> None:
        for attempt, shipped in self.shipped.items():
            for index, chunk in shipped.items():
                assert index < len(self.sealed[attempt])
                assert self.sealed[attempt][index] == chunk

    @invariant()
    def the_bound_holds(self) -> None:
        journals = sum(path.stat().st_size for path in self.run.rglob("*.journal"))
        # A begun segment's header may stand above the bound.
        assert journals <= BOUND + 32

    def teardown(self) -> None:
        if self.writer is not None:
            self.die()
        for attempt in self.attempts:
            reader = self.reader(attempt)
            if reader is None:
                continue
            while (record := reader.next()) is not None:
                assert self.shipped[attempt].setdefault(record.index, record.chunk) == record.chunk
                reader.acknowledge(record)
            assert self.shipped[attempt] == dict(enumerate(self.sealed[attempt])), "sealed chunks lost: 0, doubled: 0"
            assert reader.remove_if_done()
        assert attempt_folders(self.run) == []
        if self.run.is_dir():
            assert folder_bytes(self.run) == 0
        shutil.rmtree(self.root)
        assert not [entry for entry in os.listdir("/proc/self/fd") if _points_into(entry, self.root)]


def _points_into(entry: str, folder: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{entry}").startswith(str(folder))
    except FileNotFoundError:
        return False


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
