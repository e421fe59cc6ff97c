"""The detector that docs/detection.md shows runs as it is printed there."""

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lossguard.cli.main import app
from lossguard.trace import npz
from lossguard.wire.frame import Frames, Schema

PAGE = Path(__file__).parents[2] / "docs" / "detection.md"


def test_the_printed_rule_finds_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"```python\n# my_rules\.py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_rules.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("loss", "prediction_mean/click", "label_mean/click")
    scalars = np.tile([0.7, 0.4, 0.4], (50, 1))
    scalars[30:, 1] = 0.6
    npz.write(tmp_path / "run.npz", Frames.of(Schema(names), np.arange(1, 51), scalars))
    result = CliRunner().invoke(
        app, ["replay", str(tmp_path / "run.npz"), "--rule", "my_rules:calibration", "--format", "json"]
    )
    assert result.exit_code == 0, result.output
    assert "Task click predicts 0.60 on average at step 31." in result.output
