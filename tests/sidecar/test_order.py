"""Attempts of a run are shipped in the order of their start, whatever is sealed while they are looked at."""

from pathlib import Path

import numpy as np

from lossguard.journal.reader import AttemptReader
from lossguard.journal.writer import JournalWriter
from lossguard.sidecar.client import Accepted, Outcome
from lossguard.sidecar.shipper import RunShipper
from lossguard.wire.chunk import Chunk, ChunkId, encode
from lossguard.wire.frame import Frames, Schema
from lossguard.wire.replies import Advice, ChunkReply

EARLIER, LATER = "b" * 32, "a" * 32


class _Taker:
    """A service that takes every chunk."""

    def __init__(self) -> None:
        self.attempts: list[str] = []

    def put_chunk(self, identity: ChunkId, data: bytes) -> Outcome:
        self.attempts.append(identity.attempt)
        return Accepted(ChunkReply(False, 1, identity.index + 1, None, "healthy", Advice("continue", None, "")))

    def put_heartbeat(self, project: str, run: str, document: dict[str, object]) -> bool:
        return True


def _begun(root: Path, attempt: str) -> JournalWriter:
    return JournalWriter(root, "ads", "r", attempt, started=1.0)


def _seal(journal: JournalWriter) -> None:
    frames = Frames.of(Schema(("loss",)), [1], np.array([[0.5]]))
    journal.append(encode(Chunk(ChunkId("ads", "r", journal.folder.name, journal.next_index), frames)))


def test_an_attempt_that_seals_its_first_chunk_just_now_comes_after_the_earlier_ones(tmp_path: Path) -> None:
    earlier = _begun(tmp_path, EARLIER)
    for _ in range(3):
        _seal(earlier)
    earlier.close()
    later = _begun(tmp_path, LATER)

    class Shipper(RunShipper):
        def _attempts(self) -> list[AttemptReader]:
            listed = super()._attempts()
            _seal(later)
            return listed

    service = _Taker()
    shipper = Shipper(tmp_path / "ads" / "r", service)
    shipper.turn()
    shipper.turn()
    assert service.attempts == [EARLIER] * 3 + [LATER] * 2
    later.close()
    shipper.close()
