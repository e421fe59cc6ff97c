"""The results file, and docs/lab.md made of it and of nothing else.

`docs/lab/results.json`: {"about": {...}, "experiments": {name: {"title", "cost", "found"}}}. An experiment that was
not run to its end keeps what an earlier lab on the same data found, with the version of the code that it ran on, and is
named as not run where there is nothing.
"""

import json
import os
import platform
import re
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.cache import code_version, library_version
from lab.config import Config
from lab.lab import Experiment, Lab, Missing
from lossguard.wire.numbers import to_json

RESULTS = Path("lab") / "results.json"
PAGE = Path("lab.md")
WIDTH = 120


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the lab, from its start until everything was trained.

    Attributes:
        trained: runs, without those that were there.
        wall_seconds, cpu_seconds: of it and its workers.
    """

    trained: int
    wall_seconds: float
    cpu_seconds: float


def collect(lab: Lab, chosen: Sequence[Experiment], out: Path, call: Call) -> list[str]:
    """Measure, write the results file, the figures and the page; what to tell the user.

    Args:
        lab: that ran.
        chosen: the experiments to measure.
        out: folder of the documents.
        call: what it took.
    """
    place = out / RESULTS
    place.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(place.read_text()) if place.is_file() else {}
    about = _about(lab)
    if results.get("about", {}).get("fingerprint") != about["fingerprint"]:
        results = {}
    experiments: dict[str, Any] = results.get("experiments", {})
    notes = []
    counted: set[Config] = set()
    for one in chosen:
        lab.asked.clear()
        try:
            found = one.measure(lab)
        except Missing as missing:
            notes.append(f"{one.NAME}: not complete ({missing})")
            continue
        experiments[one.NAME] = to_json({"title": one.TITLE, "cost": _cost(lab, counted), "found": found})
    results = {"about": about | {"call": to_json(asdict(call))}, "experiments": experiments}
    text = json.dumps(results, indent=1, sort_keys=True)
    # Points on one line: a line for each number would be most of the file.
    place.write_text(re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda list_: f"[{' '.join(list_[1].split())}]", text) + "\n")
    write(out)
    return [*notes, f"wrote {out / PAGE} and {place}"]


def _about(lab: Lab) -> dict[str, Any]:
    return {
        "data": "KuaiRand-Pure" if lab.source.folder is not None else "a generated stream",
        "fingerprint": lab.cache.fingerprint,
        "quick": lab.quick,
        "date": datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "tensorflow": library_version("tensorflow"),
        "keras": library_version("keras"),
        "cores": os.cpu_count(),
        "workers": lab.workers,
    }


def _cost(lab: Lab, counted: set[Config]) -> dict[str, Any]:
    """Runs and seconds of what was asked for and not counted before."""
    known = [lab.known(one) for one in tuple(lab.asked) if one not in counted]
    outcomes = [one for one in known if one is not None]
    counted.update(lab.asked)
    return {
        "code": code_version()[:12],
        "runs": len(outcomes),
        "cpu_seconds": round(sum(one.cpu_seconds + one.compile_seconds for one in outcomes), 1),
        "wall_seconds": round(sum(one.wall_seconds for one in outcomes), 1),
    }


def write(out: Path) -> None:
    """Write the page and the figures from the results file."""
    results = json.loads((out / RESULTS).read_text())
    (out / PAGE).write_text(render(results))
    from lab.experiments import ALL

    for one in ALL:
        draw = getattr(one, "figures", None)
        if draw is not None and one.NAME in results["experiments"]:
            for name, svg in draw(results["experiments"][one.NAME]["found"]).items():
                (out / "lab" / f"{name}.svg").write_text(svg)


def render(results: dict[str, Any]) -> str:
    """The page, of the results alone."""
    from lab.experiments import ALL

    about, experiments = results["about"], results["experiments"]
    lines = [
        "# The lab",
        "",
        "What the paper ([arXiv 2302.09178](https://arxiv.org/abs/2302.09178)) and a practitioner's report say about "
        "unstable rankers, run again in small, with Lossguard watching every run. `make lab` writes this page; every "
        "number on it is in [lab/results.json](lab/results.json).",
        "",
    ]
    if about["quick"]:
        lines += ["**A smoke run: nothing on this page is to be believed.**", ""]
    lines += ["## In short", ""]
    for one in ALL:
        if one.NAME in experiments:
            said = one.headline(experiments[one.NAME]["found"])
            lines.append(f"- **[{one.TITLE}](#{_anchor(one.TITLE)}).** {said}")
        else:
            lines.append(f"- **{one.TITLE}.** Not run.")
    lines += ["", "## How it was run", "", *_commands(results)]
    for one in ALL:
        lines += ["", f"## {one.TITLE}", ""]
        if one.NAME in experiments:
            lines += one.text(experiments[one.NAME]["found"])
            cost = experiments[one.NAME]["cost"]
            lines += [
                "",
                f"`lossguard-lab --only {one.NAME}`: {cost['runs']} runs that no section before has, "
                f"{cost['cpu_seconds']:.0f} CPU seconds, code {cost['code']}.",
            ]
        else:
            lines += [f"Not run. `lossguard-lab --only {one.NAME}` runs it."]
    return "\n".join(part for line in lines for part in _wrapped(line)) + "\n"


def _wrapped(line: str) -> list[str]:
    """A paragraph or a point of a list as lines of the width of the other documents."""
    if len(line) <= WIDTH or line.startswith(("|", "    ", "#", "![")):
        return [line]
    indent = "  " if line.startswith("- ") else ""
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _anchor(title: str) -> str:
    """What GitHub calls a heading."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes"


def _commands(results: dict[str, Any]) -> list[str]:
    about, costs = results["about"], [one["cost"] for one in results["experiments"].values()]
    runs, cpu = (sum(one[name] for one in costs) for name in ("runs", "cpu_seconds"))
    call = about["call"]
    if call["trained"] == runs:
        said = f"All of them were trained in one call that began with nothing: {_minutes(call['wall_seconds'])}"
    else:
        said = (
            f"The last call trained {call['trained']} of them, the others were kept: {_minutes(call['wall_seconds'])}"
        )
    return [
        f"On {about['data']}, {about['date']}, with TensorFlow {about['tensorflow']}, Keras {about['keras']} and "
        f"Python {about['python']}, {about['workers']} processes of one thread on {about['cores']} cores: {runs} runs, "
        f"{cpu:.0f} CPU seconds with their compilations. {said} by the clock and {call['cpu_seconds']:.0f} CPU "
        f"seconds, with reading the data and judging the runs; {about['workers']} cores that do nothing else need "
        f"{_minutes(call['cpu_seconds'] / about['workers'])}. The clock also runs for whatever else such a machine "
        "does: where it says more than the cores need, the machine was shared.",
        "",
        '    make lab ARGS="--data KuaiRand-Pure/data"    # docs/demo.md says how to get the data',
        '    make lab ARGS="--quick"                      # a smoke run on a generated stream',
        '    make lab ARGS="--plan"                       # what would run, and what it would cost',
        '    make lab ARGS="--only table3 --export DIR"   # one experiment, and its runs as traces',
        "",
        "The same seeds give the same runs to the bit on one machine; another processor's floating-point kernels give "
        "other runs, and other coin flips at the edge of stability.",
    ]
