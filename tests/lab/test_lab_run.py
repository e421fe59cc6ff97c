"""The whole lab in small: what is kept is not run again, and what a kill leaves is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow")
# The smoke run is a minute of CPU, which a busy machine may stretch.
pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(900)]
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def _lab(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lab", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    _lab("--quick", "--cache", folder / "cache", "--out", folder / "docs")
    return folder


def test_a_smoke_run_writes_every_section_and_says_that_it_is_one(ran: Path) -> None:
    from lab.experiments import ALL

    results = json.loads((ran / "docs" / "lab" / "results.json").read_text())
    page = (ran / "docs" / "lab.md").read_text()
    assert set(results["experiments"]) == {one.NAME for one in ALL}
    assert "nothing on this page is to be believed" in page
    assert all(f"## {one.TITLE}" in page for one in ALL)
    assert "Not run." not in page


def test_only_the_runs_that_are_missing_are_run_again_and_all_are_exported_as_traces(ran: Path, tmp_path: Path) -> None:
    from lossguard.trace import npz
    from lossguard.trace.replay import replay

    cache = ran / "cache"
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("*.json")}
    lost = min(kept)
    before = json.loads(lost.read_text())
    # What a kill between the two files of a run leaves.
    lost.unlink()
    _lab("--quick", "--cache", cache, "--out", ran / "docs", "--export", tmp_path)
    assert json.loads(lost.read_text())["digest"] == before["digest"]
    del kept[lost]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    call = json.loads((ran / "docs" / "lab" / "results.json").read_text())["about"]["call"]
    assert call["trained"] == 1
    traces = sorted(tmp_path.glob("*.npz"))
    assert len(traces) == len(list(cache.glob("*.json")))
    trace = npz.read(traces[0])
    assert trace.tasks["click"] == "binary"
    assert replay(trace).status in ("healthy", "recovered", "diverged")


def _refused(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lab", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


def test_data_that_the_lab_cannot_use_are_refused_with_a_sentence(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import csv

    from lossguard.demo import stream

    assert "KuaiRand" in _refused("--data", tmp_path, "--out", tmp_path, "--cache", tmp_path / "cache")
    tables = stream.generate(0, days=14, rows_per_day=50)
    for name, columns in (
        ("log_standard_4_22_to_5_08_pure", tables.interactions),
        ("user_features_pure", tables.users),
        ("video_features_basic_pure", tables.videos),
    ):
        csv.write_csv(pa.table({key: pa.array(values) for key, values in columns.items()}), tmp_path / f"{name}.csv")
    said = _refused("--data", tmp_path, "--out", tmp_path, "--cache", tmp_path / "cache")
    assert "rows before its last day, the lab needs 200,000" in said
    assert "leave --data out" in _refused("--data", tmp_path, "--quick")
