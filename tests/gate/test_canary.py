"""The canary: a real export of Keras answers, a broken one is found out, and nothing here loads TensorFlow."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gate_runs import healthy

from lossguard.gate.canary import NoCanary, run_canary
from lossguard.wire.verdict import outcome_of
from lossguard_service.gate.decide import decide
from lossguard_service.gate.facts import Canary
from lossguard_service.gate.policy import DEFAULT

EXPORTS = Path(__file__).resolve().parents[1] / "golden" / "exports"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"features": [[1, 2, 3, 4], [0, 1, 0, 1], [2, 2, 2, 2]]}))
    return path


@pytest.mark.tensorflow
def test_a_sound_export_answers_and_a_broken_one_blocks(rows: Path) -> None:
    good = run_canary(EXPORTS / "good.keras", rows)
    assert (good["rows"], good["nonfinite"]) == (3, 0)
    assert good["spread"] > 0
    broken = run_canary(EXPORTS / "nan.keras", rows)
    assert broken["nonfinite"] == 3
    outcomes = [outcome_of(decide(DEFAULT, replace(healthy(), canary=Canary(**one)))) for one in (good, broken)]
    assert outcomes == ["pass", "block"]


@pytest.mark.tensorflow
def test_rows_that_are_none_are_the_users_fault_and_not_the_models(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('{"a": [1, 2], "b": [1]}')
    with pytest.raises(NoCanary, match="same number of rows"):
        run_canary(EXPORTS / "good.keras", tmp_path / "rows.json")
    with pytest.raises(NoCanary, match="is not a file"):
        run_canary(EXPORTS / "good.keras", tmp_path / "nowhere.npz")


def test_a_model_that_never_answers_is_blocked(rows: Path) -> None:
    assert "did not answer within" in run_canary(EXPORTS / "good.keras", rows, seconds=0.05)["error"]


def test_a_model_that_takes_more_memory_than_it_may_have_is_blocked(rows: Path) -> None:
    answer = run_canary(EXPORTS / "good.keras", rows, memory_bytes=64 << 20)
    assert answer["error"]
    assert outcome_of(decide(DEFAULT, replace(healthy(), canary=Canary(**answer)))) == "block"


def test_a_host_without_tensorflow_is_told_so(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keras.py").write_text("raise ModuleNotFoundError(\"No module named 'keras'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(NoCanary, match=r"lossguard\[tensorflow\]"):
        run_canary(EXPORTS / "good.keras", rows)
    assert sys.modules.get("lossguard.keras.canary") is None
