"""Detection quality: ours and the published rules, in one table, on recorded runs and on other people's curves.

    python benchmarks/detection.py [--shared ../shared] [--only traces|curves] [--cross-validate] [--json FILE]

The scoring is the shared folder's `score_detection.py`, unchanged: this runner hands it documents instead of letting it
start a command. A published rule says when, not what; to be scored at all, each gets the same wrapping: alarms at most
25 frames apart are one episode; it is a full divergence if the median loss of the 100 frames after its first alarm
stays 5 % above the median of the 50 before it (declared then), and otherwise a micro-divergence; a non-finite loss that
lasts to the end is `nonfinite` for every rule, whether or not it looks at NaN. That is generous: none of the peers does
it.

With `--cross-validate` one more row says what is left when the sensitivity (`caution`, the factor on all scales) is
chosen without the runs it is scored on: for every group (a configuration of the recorded runs, a source of the curves)
on all the others. Other constants are not chosen anew: what they cost is in the first row only.
"""

import argparse
import contextlib
import csv
import importlib.util
import io
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from lossguard.trace.read import read
from lossguard.trace.replay import replay
from lossguard.trace.trace import Trace
from published_rules import RULES, Rule, Series

REPOSITORY = Path(__file__).resolve().parents[1]
CAUTIONS = (0.8, 1.0, 1.25)
COLUMNS = {
    "full_recall": "full recall",
    "delay_median": "flagged, median",
    "delay_p90": "p90",
    "declared_median": "declared, median",
    "declared_p90": "p90",
    "false_full_rate": "false full",
    "micro_recall": "micro recall",
    "false_micro_per_1000_healthy": "false micro, healthy",
    "false_micro_per_1000_spike": "spike",
}


def series(trace: Trace) -> Series:
    """A run as the published rules see it."""
    frames = trace.attempts[0]
    names = frames.schema.scalars
    loss = frames.scalars[:, names.index("loss")]
    stats = {name: frames.stats[:, :, k].astype(np.float64) for k, name in enumerate(frames.schema.stats)}
    gradient = None
    if "gradient_norm" in names:
        gradient = frames.scalars[:, names.index("gradient_norm")]
    elif "gradient_norm" in stats:
        gradient = np.sqrt((stats["gradient_norm"] ** 2).sum(axis=1))
    return Series(loss, gradient, stats)


def wrapped(rule: Rule, trace: Trace) -> dict[str, Any]:
    """A rule's alarms as the document of `lossguard replay`."""
    steps = trace.attempts[0].steps
    run = series(trace)
    alarms = rule(run)
    incidents: list[dict[str, Any]] = []
    last = -(10**9)
    for t in alarms:
        apart, last = t - last > 25, t
        if not apart:
            continue
        before = run.loss[max(0, t - 50) : t]
        before = before[np.isfinite(before)]
        after = run.loss[t : t + 100]
        base = float(np.median(before)) if len(before) else float("nan")
        lost = len(after) == 100 and not np.median(after) <= base + 0.05 * abs(base)
        incidents.append(
            {
                "kind": "full_divergence" if lost else "micro_divergence",
                "onset_step": int(steps[t]),
                "detected_step": int(steps[t]),
                "declared_full_step": int(steps[t + 99]) if lost else None,
            }
        )
    finite = np.isfinite(run.loss)
    if not finite[-1] and alarms:
        t = int(np.flatnonzero(finite)[-1]) + 1 if finite.any() else 0
        incidents.append(
            {"kind": "nonfinite", "onset_step": int(steps[t]), "detected_step": int(steps[t]),
             "declared_full_step": None}
        )  # fmt: skip
    full = any(incident["kind"] != "micro_divergence" for incident in incidents)
    return {"status": "diverged" if full else "recovered" if incidents else "healthy", "incidents": incidents}


def figures(kind: str, folder: Path, documents: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The shared script's figures for these documents."""
    spec = importlib.util.spec_from_file_location("score_detection", folder.parent / "score_detection.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    vars(script)["replay"] = lambda command, files, batch=25: {f.stem: documents[f.stem] for f in files}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        out = Path(scratch) / "figures.json"
        sys.argv = ["score_detection.py", kind, str(folder), "--json", str(out)]
        script.main()
        found: dict[str, float] = json.loads(out.read_text())
    return found


def load(kind: str, folder: Path) -> dict[str, Trace]:
    """All runs of a folder; curves as runs without layers, as the shared script makes them."""
    runs = {}
    for path in sorted((folder / "runs").glob("*.npz")):
        if kind == "traces":
            runs[path.stem] = read(path)
            continue
        with np.load(path, allow_pickle=False) as archive, tempfile.TemporaryDirectory() as scratch:
            columns = {"loss": archive["loss"]}
            for key, name in (("grad_norm", "gradient_norm"), ("lr", "learning_rate")):
                if key in archive.files and len(archive[key]) == len(archive["loss"]):
                    columns[name] = archive[key]
            copy = Path(scratch) / path.name
            np.savez(
                copy,
                step=np.arange(len(archive["loss"]), dtype=np.int64),
                scalar_names=np.array(list(columns)),
                scalars=np.stack([np.asarray(c, np.float64) for c in columns.values()], 1),
            )
            runs[path.stem] = read(copy)
    return runs


def chosen(rows: list[dict[str, str]], kind: str, documents: dict[float, dict[str, dict[str, Any]]]) -> float:
    """The caution with the most divergences found among those that raise few enough false alarms on these runs."""
    name, label = ("name", "status") if kind == "traces" else ("id", "label")
    most_full, most_micro = (0.01, 0.05) if kind == "traces" else (0.02, 0.1)

    def worth(caution: float) -> tuple[bool, int, float]:
        found = false = others = alarms = steps = 0
        for row in rows:
            document = documents[caution][row[name]]
            if row[label] in ("full", "nan"):
                found += document["status"] == "diverged"
                continue
            if row[label] in ("unclear", "rescued"):
                continue
            others += 1
            false += any(one["declared_full_step"] is not None for one in document["incidents"])
            met = sum(one["kind"] == "micro_divergence" for one in document["incidents"])
            if row[label] == "micro":
                found += met > 0
            elif row[label] == "healthy":
                alarms, steps = alarms + met, steps + int(row.get("steps") or row["n"])
        quiet = false <= most_full * others and 1000 * alarms <= most_micro * steps
        return quiet, found if quiet else -alarms - false, -abs(np.log(caution))

    return max(CAUTIONS, key=worth)


def cross_validated(kind: str, folder: Path, documents: dict[float, dict[str, dict[str, Any]]]) -> dict[str, float]:
    """The figures when each group's runs are judged with what was chosen on all other groups."""
    name, group = ("name", "group") if kind == "traces" else ("id", "repo")
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    held: dict[str, dict[str, Any]] = {}
    picks: list[float] = []
    for one in sorted({row[group] for row in rows}):
        caution = chosen([row for row in rows if row[group] != one], kind, documents)
        mine = [row[name] for row in rows if row[group] == one]
        held |= {run: documents[caution][run] for run in mine}
        picks.append(caution)
    counts = ", ".join(f"{caution:g} in {picks.count(caution)}" for caution in CAUTIONS if caution in picks)
    print(f"cross-validation over {len(picks)} groups chose the caution {counts} of them\n")
    return figures(kind, folder, held)


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = ["| rule | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{values[key]:.3g}" for key in COLUMNS) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("LOSSGUARD_SHARED", REPOSITORY.parent / "shared")
    parser.add_argument("--shared", type=Path, default=Path(default))
    parser.add_argument("--only", choices=["traces", "curves"])
    parser.add_argument("--cross-validate", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    np.seterr(all="ignore")
    result = {}
    for kind in [options.only] if options.only else ["traces", "curves"]:
        folder = options.shared / kind
        if not (folder / "labels.csv").is_file():
            parser.error(f"no labels.csv in {folder}: name the folder with the recorded runs with --shared")
        runs = load(kind, folder)
        frames = sum(len(trace) for trace in runs.values())
        begin = time.process_time()
        documents = {name: replay(trace).to_json() for name, trace in runs.items()}
        spent = time.process_time() - begin
        rows = {"lossguard": figures(kind, folder, documents)}
        if options.cross_validate:
            others = {caution: {name: replay(trace, caution).to_json() for name, trace in runs.items()}
                      for caution in CAUTIONS if caution != 1.0}  # fmt: skip
            rows["lossguard, held-out groups"] = cross_validated(kind, folder, {1.0: documents, **others})
        for name, rule in RULES.items():
            rows[name] = figures(kind, folder, {run: wrapped(rule, trace) for run, trace in runs.items()})
        result[kind] = rows
        print(f"## {kind}: {len(runs)} runs, {frames} frames, ours {1e6 * spent / frames:.0f} us CPU a frame\n")
        print(table(rows) + "\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
