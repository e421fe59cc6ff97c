"""Two real processes under `MultiWorkerMirroredStrategy`: one device's numbers, one journal, one sign of life."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from two_workers import STEPS, train

from conftest import MemorySink
from free_ports import free_port
from lossguard.journal.layout import attempt_folders
from lossguard.journal.reader import AttemptReader
from lossguard.keras import Clippy, Watch
from lossguard.wire import stats
from lossguard.wire.chunk import AttemptStop, Chunk, decode

SCRIPT = Path(__file__).with_name("two_workers.py")


@dataclass(frozen=True)
class Trained:
    """What chief and worker left: their journals, what each printed, and what the chief sealed."""

    journals: list[Path]
    said: list[dict[str, Any]]
    chunks: list[Chunk]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trains once for all tests."""
    journals = [tmp_path_factory.mktemp(name) for name in ("chief", "worker")]
    ports = [str(free_port()) for _ in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), *ports, str(journal)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, journal in enumerate(journals)
    ]
    try:
        answers = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], answers
    return Trained(journals, [json.loads(out.splitlines()[-1]) for out, _ in answers], chunks(journals[0]))


def chunks(journal: Path) -> list[Chunk]:
    (folder,) = attempt_folders(journal / "ads" / "two")
    reader = AttemptReader(folder)
    found = []
    while (record := reader.next()) is not None:
        found.append(decode(record.chunk))
        reader.acknowledge(record)
    reader.close()
    return found


def test_two_processes_measure_what_one_device_measures(
    trained: Trained, watch: Callable[..., Watch], sinks: list[MemorySink]
) -> None:
    said = trained.said
    options: dict[str, Any] = {
        "tasks": {"click": "binary"},
        "logits": ["click"],
        "full_every": 1,
        "fetch_seconds": 3600.0,
    }
    weights = train(tf.distribute.get_strategy(), watch(treatment=Clippy(lambda_abs=1e-3), **options))
    assert [one["replicas"] for one in said] == [2, 2]
    for one in said:
        for there, here in zip(one["weights"], weights, strict=True):
            np.testing.assert_allclose(there, here, atol=1e-6)
    alone = sinks[0]
    frames = [chunk.frames for chunk in trained.chunks if len(chunk.frames)]
    assert [int(step) for block in frames for step in block.steps] == alone.steps == list(range(1, STEPS + 1))
    for name in ("loss", "label_mean/click", "prediction_mean/click", "prediction_std/click", "learning_rate"):
        column = frames[0].schema.scalars.index(name)
        together = np.concatenate([block.scalars[:, column] for block in frames])
        np.testing.assert_allclose(together, alone.scalar(name), rtol=1e-5, err_msg=name)
    for row, layer in enumerate(frames[0].schema.layers):
        for column, stat in enumerate(frames[0].schema.stats):
            together = np.concatenate([block.stats[:, row, column] for block in frames])
            close = 5e-3 if stat == stats.RELATIVE_UPDATE_MAX else 1e-5
            np.testing.assert_allclose(
                together, alone.stat(layer, stat), rtol=close, atol=1e-7, err_msg=f"{layer} {stat}"
            )


def test_the_chief_journals_and_the_other_worker_leaves_a_sign_of_life(trained: Trained) -> None:
    worker = trained.journals[1]
    assert [one["alive"] for one in trained.said] == [[], [1]]
    last = [event for chunk in trained.chunks for event in chunk.events if isinstance(event, AttemptStop)]
    assert [(stop.step, stop.reason) for stop in last] == [(STEPS, "finished")]
    assert attempt_folders(worker / "ads" / "two") == []
    assert list((worker / "ads" / "two" / "workers").iterdir()) == []


def test_what_keras_cannot_do_over_processes_is_refused(trained: Trained) -> None:
    for one in trained.said:
        assert "Keras 3 cannot fit" in one["fit"]
        assert one["stop"].startswith("on_full_divergence: one process cannot stop")
