"""The report's determinism audit: are two identical runs equal to the bit, and what breaks it."""

from collections.abc import Iterable
from typing import Any

from lab.config import Config
from lab.lab import Lab
from lab.report.markdown import table
from lossguard.trace.compare import parting

NAME = "determinism"
TITLE = "Determinism: what makes identical runs differ"

BASE = Config(bottom="large+dcn", learning_rate=0.1, warm_up=100, steps=300, evaluations=1)
CHANGES: dict[str, dict[str, Any]] = {
    "nothing: the same, on a step compiled anew": {"repeat": 1},
    "how often the layers are measured": {"full_every": 1},
    "the order of the batches": {"batch_seed": 1},
    "the seed of the weights": {"seed": 1, "batch_seed": 0},
    "two threads in the place of one": {"threads": 2},
    "two threads, against another run with two": {"threads": 2, "repeat": 1},
}


def _pairs(lab: Lab) -> dict[str, tuple[Config, Config]]:
    base = lab.small(BASE.but(bottom="small", steps=40) if lab.quick else BASE)
    found = {}
    for name, change in CHANGES.items():
        if lab.quick and set(change) not in ({"repeat"}, {"batch_seed"}):
            continue
        # Against what differs from it in the change alone.
        other = base.but(threads=2) if "against another" in name else base
        found[name] = (other, base.but(**change))
    return found


def plan(lab: Lab) -> Iterable[Config]:
    """Both runs of each pair."""
    for pair in _pairs(lab).values():
        yield from pair


def measure(lab: Lab) -> dict[str, Any]:
    """For each pair whether it is equal, and where it parts."""
    rows = []
    for name, (one, other) in _pairs(lab).items():
        first, second = lab.outcome(one), lab.outcome(other)
        parted = parting(lab.trace(one), lab.trace(other))
        rows.append(
            {
                "change": name,
                "equal": first.digest == second.digest,
                "parted": None if parted is None else {"step": parted[0], "scalar": parted[1]},
                "auc": [first.final["auc/click"], second.final["auc/click"]],
            }
        )
    return {"rows": rows, "steps": BASE.steps}


def text(found: dict[str, Any]) -> list[str]:
    """The section."""
    rows = []
    for row in found["rows"]:
        parted = row["parted"]
        where = "-" if parted is None else f"step {parted['step']}, `{parted['scalar']}`"
        one, other = (f"{100 * value:.2f}" for value in row["auc"])
        rows.append([row["change"], "equal" if row["equal"] else "differ", where, f"{one} / {other}"])
    head = ["what differs", "final weights, bit for bit", "first difference", "click AUC, %"]
    return [
        f"Pairs of runs of {found['steps']} steps; the first difference is what `lossguard compare` names.",
        "",
        *table(head, rows),
    ]


def headline(found: dict[str, Any]) -> str:
    """What is equal and what breaks it."""
    equal = [row["change"].split(":")[0] for row in found["rows"] if row["equal"]]
    differ = [row["change"] for row in found["rows"] if not row["equal"]]
    return (
        f"Runs stay equal to the bit when this changes: {'; '.join(equal) or 'nothing at all'}. They differ with "
        f"{'; '.join(differ) or 'nothing'}."
    )
