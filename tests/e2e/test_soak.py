"""The soak, shortened: a real service process takes rounds of many runs, and its memory stays flat."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_service_of_many_runs_stays_below_its_memory() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--every", "50", "--compact-seconds", "0.2"]
    sizes = ["--runs", "50", "--rounds", "22", "--steps", "8", "--layers", "50", "--long", "1", "--limit", "800"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr
    found = re.search(r"empty (\d+) MB, most (\d+) MB.* (\d+) chunks, (\d+) not taken, (\d+) segments", done.stdout)
    assert found, done.stdout
    empty, most, sent, refused, made = map(int, found.groups())
    assert (sent, refused, made) == (49 * 22 + 4 * 22, 0, 1)
    assert most < empty + 100  # one segment is built at a time, and nothing is kept of the chunks
