"""One training as the demo starts it: a process that reads a specification and writes lines."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossguard.demo.tables import Tables
from lossguard.demo.train import Spec
from lossguard.gate.digest import artifact_digest
from lossguard.journal.reader import AttemptReader
from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, Chunk, decode
from lossguard.wire.frame import Frames

Write = Callable[[Tables, Path, str], Path]
pytestmark = pytest.mark.tensorflow


def _spec(folder: Path, **changed: Any) -> Spec:
    values = {
        "project": "demo", "run": "r", "treatment": "none", "seed": 1, "steps": 48, "learning_rate": 0.1,
        "data": str(folder / "data"), "journal": str(folder / "journal"), "export": str(folder / "export"),
        "checkpoints": str(folder / "checkpoints"),
    }  # fmt: skip
    return Spec(**(values | changed))


def _start(spec: Spec, folder: Path) -> subprocess.Popen[str]:
    (folder / "spec.json").write_text(spec.dumps())
    command = [sys.executable, "-m", "lossguard.demo.train", str(folder / "spec.json")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(spec: Spec, folder: Path) -> tuple[int, list[dict[str, Any]]]:
    process = _start(spec, folder)
    out, err = process.communicate()
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines or process.returncode, err
    return process.returncode, lines


def _chunks(folder: Path) -> list[Chunk]:
    (attempt,) = (path for path in (folder / "journal" / "demo" / "r").iterdir() if not path.name.startswith("."))
    reader, found = AttemptReader(attempt), []
    try:
        while (record := reader.next()) is not None:
            found.append(decode(record.chunk))
            reader.acknowledge(record)
    finally:
        reader.close()
    return found


def _frames(chunks: list[Chunk]) -> list[Frames]:
    """Those with steps in them: the first chunk of an attempt may hold its start alone."""
    return [chunk.frames for chunk in chunks if len(chunk.frames)]


@pytest.fixture(scope="module")
def data(small: Tables, write: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(small, tmp_path_factory.mktemp("kuairand"), "parquet")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], list[Chunk]]:
    """A plain training: its folder, the lines it wrote, the chunks it left."""
    folder = tmp_path_factory.mktemp("plain")
    code, lines = _run(_spec(folder, data=str(data)), folder)
    assert code == 0
    return folder, lines, _chunks(folder)


def test_a_training_tells_its_steps_exports_a_model_and_journals_every_step(
    trained: tuple[Path, list[dict[str, Any]], list[Chunk]],
) -> None:
    folder, lines, chunks = trained
    assert [line["step"] for line in lines[:-1]] == list(range(8, 49, 8))
    last = lines[-1]
    assert last["step"] == 48
    assert set(last["metrics"]) >= {"auc/click", "rmse/play_time"}
    assert artifact_digest(folder / "export").startswith("sha256:")
    assert (folder / "export" / "saved_model.pb").is_file()

    frames = _frames(chunks)
    assert np.array_equal(np.concatenate([block.steps for block in frames]), np.arange(1, 49))
    names = frames[0].schema
    assert {"loss/play_time", "batch_auc/click", "learning_rate"} <= set(names.scalars)
    assert {"embedding/table", "head_click/kernel"} <= set(names.layers)
    assert all(chunk.id.attempt == last["attempt"] for chunk in chunks)
    events = [event for chunk in chunks for event in chunk.events]
    assert isinstance(events[0], AttemptStart)
    assert events[0].config["tasks"]["play_time"] == "regression"
    assert events[0].config["parameters_watched"] == 1.0
    assert isinstance(events[-1], AttemptStop)
    assert events[-1].reason == "finished"
    saved = [event for event in events if isinstance(event, Checkpoint)]
    assert [event.step for event in saved] == [8, 16, 24, 32, 40, 48]
    assert all(event.has_slots and Path(event.path).is_file() for event in saved)


def test_clippy_scales_the_updates_of_everything_but_the_embedding(data: Path, tmp_path: Path) -> None:
    code, _ = _run(_spec(tmp_path, data=str(data), treatment="clippy", learning_rate=1.0), tmp_path)
    assert code == 0
    frames = _frames(_chunks(tmp_path))
    names = frames[0].schema
    factor = np.concatenate([block.stats for block in frames])[:, :, names.stats.index("clipping_factor")]
    table = names.layers.index("embedding/table")
    assert np.all(factor[:, table] == 1)
    assert np.min(factor[:, names.layers.index("shared_1/kernel")]) < 1


def test_the_same_specification_gives_the_same_training_bit_for_bit(
    data: Path, tmp_path: Path, trained: tuple[Path, list[dict[str, Any]], list[Chunk]]
) -> None:
    code, lines = _run(_spec(tmp_path, data=str(data)), tmp_path)
    assert code == 0
    assert lines[-1]["metrics"] == trained[1][-1]["metrics"]
    scalars, again = (
        np.concatenate([block.scalars for block in _frames(chunks)]) for chunks in (trained[2], _chunks(tmp_path))
    )
    assert np.array_equal(scalars, again, equal_nan=True)


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    code, lines = _run(_spec(tmp_path), tmp_path)
    assert code == 2
    (line,) = lines
    assert line["error"].startswith(f"there is no folder '{tmp_path}/data'")


def test_a_training_that_is_told_to_end_says_goodbye_in_its_journal(data: Path, tmp_path: Path) -> None:
    process = _start(_spec(tmp_path, data=str(data), steps=1_000), tmp_path)
    assert process.stdout is not None
    assert "step" in json.loads(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    events = [event for chunk in _chunks(tmp_path) for event in chunk.events]
    assert isinstance(events[-1], AttemptStop)
    assert events[-1].reason == "interrupted"
