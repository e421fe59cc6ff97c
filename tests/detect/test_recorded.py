"""Floors on a fixed sample of the recorded runs; the whole scoring is `benchmarks/detection.py`.

Every sixth run of each class, in the order of the labels file, so that nobody chose them. The floors are well below
what was measured: they catch a detector that broke, not one that became a little worse.
"""

import csv
from collections import defaultdict
from pathlib import Path

import pytest

from lossguard.trace.read import read
from lossguard.trace.replay import replay
from lossguard.wire.incident import RunReport

Judged = dict[str, list[tuple[dict[str, str], RunReport]]]


@pytest.fixture(scope="module")
def judged(shared: Path) -> Judged:
    """Reports of the sample, by class."""
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    with (shared / "traces" / "labels.csv").open() as file:
        for row in csv.DictReader(file):
            rows[row["status"]].append(row)
    return {
        status: [(row, replay(read(shared / "traces" / "runs" / f"{row['name']}.npz"))) for row in part[::6]]
        for status, part in rows.items()
    }


def test_full_divergences_are_found_in_the_step_in_which_they_begin(judged: Judged) -> None:
    found = 0
    for row, report in judged["full"]:
        onset = int(row["onset_steps"].split()[-1])
        hits = [i for i in report.incidents if i.kind in ("full_divergence", "nonfinite")]
        found += report.status == "diverged" and any(abs(i.detected_step - onset) <= 15 for i in hits)
    assert found >= 0.9 * len(judged["full"])


def test_runs_that_train_well_are_not_called_broken(judged: Judged) -> None:
    others = [*judged["healthy"], *judged["spike"], *judged["degraded"]]
    called = [row["name"] for row, report in others if any(i.declared_full_step is not None for i in report.incidents)]
    assert len(called) <= 1, called


def test_healthy_runs_have_next_to_no_micro_divergences(judged: Judged) -> None:
    alarms = sum(i.kind == "micro_divergence" for _, report in judged["healthy"] for i in report.incidents)
    assert alarms <= 1


def test_unshuffled_epochs_are_recognised_by_their_period(shared: Path) -> None:
    for name, expected in (("p_seq_s0", True), ("p_shuf_s0", False)):
        report = replay(read(shared / "traces" / "runs" / f"{name}.npz"))
        periods = [i for i in report.incidents if i.kind == "periodic_loss"]
        assert bool(periods) is expected
        assert not expected or "every 207 logged steps" in periods[0].explanation
