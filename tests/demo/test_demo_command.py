"""`lossguard demo`: what it says to input that it cannot use, before anything is started."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from lossguard.demo import report
from lossguard.demo.run import DemoError, Options, Outcome, check_installed
from lossguard.demo.tables import Tables
from lossguard.demo.view import RunView
from lossguard.wire.incident import Incident

SENTENCES = {
    "folder": (["--data", "nowhere"], "there is no folder 'nowhere': --data takes the folder `data` of KuaiRand-Pure"),
    "rate of zero": (["--learning-rate", "0"], "--learning-rate: must be a finite number above 0, got 0"),
    "rate of nan": (["--learning-rate", "nan"], "--learning-rate: must be a finite number above 0, got nan"),
    "steps": (["--steps", "10"], "--steps: at least 100 are needed to see anything, got 10"),
    "seed": (["--seed", "-1"], "--seed: must be 0 or more, got -1"),
    "port": (["--port", "70000"], "--port: must be 0 to 65535, got 70000"),
    "json": (["--json", "no/such/out.json"], "--json: there is no folder"),
}


def _demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lossguard", "demo", "--exit", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("case", SENTENCES)
def test_input_that_cannot_be_used_gets_one_sentence_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    arguments, sentence = SENTENCES[case]
    done = _demo(tmp_path, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_said_by_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = _demo(tmp_path, "--port", str(port))
    assert done.returncode == 1
    assert "the service does not start" in done.stderr
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.tensorflow
def test_ctrl_c_in_mid_training_ends_every_process_and_says_nothing_more(
    small: Tables, write: Callable[[Tables, Path, str], Path], tmp_path: Path
) -> None:
    data = write(small, tmp_path / "data", "parquet")
    command = [sys.executable, "-m", "lossguard", "demo", "--data", str(data), "--steps", "20000"]
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT)
    state = tmp_path / ".lossguard" / "demo.json"
    pids: dict[str, int] = {}
    end = time.monotonic() + 200
    while time.monotonic() < end and process.poll() is None:
        found = json.loads(state.read_text()) if state.exists() else {}
        if found.get("step", 0) > 0:
            pids = found["pids"]
            break
        threading.Event().wait(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(100) == 130, (tmp_path / "said.txt").read_text()
    assert set(pids) == {"service", "sidecar", "trainer"}
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert "Traceback" not in (tmp_path / "said.txt").read_text()
    assert not state.exists()


def test_a_package_that_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossguard.demo.run._NEEDED", ("json", "tensorflow_that_is_not_here"))
    with pytest.raises(DemoError, match=r'needs tensorflow_that_is_not_here: pip install "lossguard\[demo\]"'):
        check_installed(None)


@pytest.mark.parametrize("rate", [math.inf, -1.0])
def test_a_rate_that_trains_nothing_is_refused(rate: float) -> None:
    with pytest.raises(DemoError, match="--learning-rate"):
        Options(None, 0, 520, rate)


def _outcome(**changed: object) -> Outcome:
    incident = Incident(
        number=0, kind="full_divergence", onset_step=204, detected_step=208, declared_full_step=230, end_step=None,
        peak_step=210, peak=1e6, residual=0.5, first_signal_step=203, first_layer="shared_1/kernel", tasks=("click",),
        confidence=1.0, explanation="", advice="",
    )  # fmt: skip
    values: dict[str, object] = {
        "run": "plain-1", "treatment": "none", "view": RunView("diverged", 520, True, 1.0, 0, incident),
        "metrics": {"auc/click": math.nan, "auc/like": 0.5, "auc/long_view": 0.5, "auc/finish": 0.5},
        "verdict": "block", "reasons": ("because",), "published": None, "page": "http://p/", "seconds": 1.0,
    }  # fmt: skip
    return Outcome(**(values | changed))  # type: ignore[arg-type]


def test_the_document_holds_what_programs_read_and_names_nan(tmp_path: Path) -> None:
    report.write(
        tmp_path / "out.json", [_outcome(), _outcome(view=None, published=Path("serving/ranker/1"))], "http://s"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    first, second = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert first["name"] == "plain-1"
    assert (first["status"], first["onset_step"], first["detected_step"]) == ("diverged", 204, 208)
    assert first["metrics"]["auc/click"] == "NaN"
    assert (first["verdict"], first["reasons"], first["published"]) == ("block", ["because"], None)
    assert (second["status"], second["onset_step"], second["published"]) == (None, None, "serving/ranker/1")


def test_the_table_fits_eighty_columns() -> None:
    console = Console(width=80, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    with console.file:
        console.print(report.table([_outcome()]))
    text = console.export_text()
    for word in ("plain-1", "diverged", "204", "shared_1/kernel", "nan", "block"):
        assert word in text
