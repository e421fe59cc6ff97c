"""Models small enough to tamper with."""

from pathlib import Path

import pytest
from gate_runs import make_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a SavedModel."""
    return make_model(tmp_path / "export")
