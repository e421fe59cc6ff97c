"""The gate on recorded runs: what diverged never passes, what is healthy does."""

import csv
from pathlib import Path

from gate_runs import facts_of_trace

from lossguard.wire.verdict import outcome_of
from lossguard_service.gate.decide import decide
from lossguard_service.gate.policy import DEFAULT


def test_no_divergence_passes_and_healthy_runs_do(shared: Path) -> None:
    with (shared / "traces" / "labels.csv").open() as stream:
        labels = {row["name"]: row["status"] for row in csv.DictReader(stream)}
    outcomes: dict[str, list[str]] = {"full": [], "nan": [], "healthy": []}
    for name, label in labels.items():
        if label in outcomes:
            facts = facts_of_trace(shared / "traces" / "runs" / f"{name}.npz")
            outcomes[label].append(outcome_of(decide(DEFAULT, facts)))
    assert len(outcomes["full"]) > 40
    assert set(outcomes["full"] + outcomes["nan"]) == {"block"}
    assert outcomes["healthy"].count("pass") >= 0.95 * len(outcomes["healthy"])
