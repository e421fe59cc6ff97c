"""A short chaos: real processes killed at random lose and double no sealed frame. The long one is a benchmark."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra [service]")
BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_sealed_frame_is_lost_or_stored_twice(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, str(BENCHMARK), "--rounds", "4", "--trainers", "2", "--seed", str(seed)]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "out.json")], capture_output=True, text=True, timeout=880, check=False
    )
    # 2: a step was late, which on a machine that does something else is no failure.
    assert done.returncode in (0, 2), done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["found"]
    assert found["frames sealed, as the trainers were told"] > 100
    assert found["sealed frames lost"] == found["frames stored twice"] == found["journal files left"] == 0
