"""Fixtures that any test may use."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the recorded runs, the labelled curves and the real interactions; skips where it is absent."""
    folder = Path(os.environ.get("LOSSGUARD_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "traces" / "labels.csv").is_file():
        pytest.skip(f"no recorded data in {folder}: set LOSSGUARD_SHARED to the folder that holds traces/ and data/")
    return folder
