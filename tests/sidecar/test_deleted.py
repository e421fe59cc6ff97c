"""A journal that somebody deletes under a living trainer costs what was in it, and nothing that follows."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from service_on_loopback import Answer, LoopbackService

from lossguard.journal.writer import JournalWriter
from lossguard.sidecar.client import Client
from lossguard.sidecar.shipper import RunShipper
from lossguard.wire.chunk import Chunk, ChunkId, encode
from lossguard.wire.frame import Frames, Schema

pytestmark = pytest.mark.usefixtures("no_leaks")
ATTEMPT = "a" * 32


def seal(journal: JournalWriter) -> None:
    frames = Frames.of(Schema(("loss",)), [journal.next_index + 1], np.array([[0.5]]))
    journal.append(encode(Chunk(ChunkId("ads", "r", ATTEMPT, journal.next_index), frames)))


@pytest.mark.parametrize("refused", [False, True], ids=["all taken", "one set aside before"])
@pytest.mark.parametrize("looked", [False, True], ids=["not looked at in between", "looked at in between"])
@pytest.mark.parametrize("deleted", [".", "ads", "ads/r", f"ads/r/{ATTEMPT}", f"ads/r/{ATTEMPT}/*"])
def test_what_follows_is_shipped(
    tmp_path: Path,
    service: LoopbackService,
    caplog: pytest.LogCaptureFixture,
    deleted: str,
    looked: bool,
    refused: bool,
) -> None:
    caplog.set_level(logging.INFO)
    root = tmp_path / "journal"
    journal = JournalWriter(root, "ads", "r", ATTEMPT, started=1.0)
    client = Client(service.url)
    shipper = RunShipper(root / "ads" / "r", client)
    if refused:
        service.next_answers.append(Answer(422))
    for _ in range(2):
        seal(journal)
        assert shipper.turn().failure is None
    seal(journal)
    for found in [root] if deleted == "." else list(root.glob(deleted)):
        shutil.rmtree(found) if found.is_dir() else found.unlink()
    if looked:
        assert shipper.turn().failure is None
    seal(journal)
    seal(journal)
    assert shipper.turn().failure is None
    (stored,) = service.chunks("r").values()
    told = {chunk.id.index: len(chunk.frames) for chunk in stored}
    assert told == {0: int(not refused), 1: 1, 2: 0, 3: 1, 4: 1}, "an empty chunk stands for what is lost"
    if not deleted.endswith("*"):
        assert "is shipped to its end" not in caplog.text
    journal.close()
    assert shipper.turn().failure is None
    assert "is shipped to its end" in caplog.text
    shipper.close()
    client.close()


def test_an_attempt_whose_beginning_is_deleted_is_told_of_once(
    tmp_path: Path, service: LoopbackService, caplog: pytest.LogCaptureFixture
) -> None:
    journal = JournalWriter(tmp_path, "ads", "r", ATTEMPT, started=1.0)
    seal(journal)
    shutil.rmtree(tmp_path / "ads")
    for _ in range(3):
        seal(journal)
    client = Client(service.url)
    shipper = RunShipper(tmp_path / "ads" / "r", client)
    assert shipper.turn().failure is None
    assert [identity[3] for identity in service.stored] == [1, 2, 3]
    assert caplog.text.count("the service cannot know from which step it began") == 1
    journal.close()
    shipper.close()
    client.close()
