"""The kept runs: `<key>.json`, the outcome, and `<key>.npz`, its trace, in one folder.

Guarantees: a key stands for one configuration, one data set, one version of the code that trains, and one version of
the libraries; a run is there once its outcome is, which is written last and renamed into place: what a kill leaves
half done is done again.
"""

import hashlib
import json
import os
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lossguard
from lab import judge
from lab.config import Config, Outcome
from lab.grids import MAKERS
from lossguard.trace import npz
from lossguard.trace.trace import Trace
from lossguard.wire.frame import Frames
from lossguard.wire.numbers import from_json_number, to_json

TRAINS = ("config.py", "data.py", "model.py", "order.py", "train.py")
"""The files of the lab that decide a run's numbers."""
PRODUCT = (
    "demo/batches.py", "demo/evaluate.py", "demo/features.py", "demo/kuairand.py", "demo/ranker.py", "demo/stream.py",
    "keras/backends/tensorflow.py", "keras/measure.py", "keras/optimizer.py", "keras/preconditioner.py",
    "keras/ranking.py", "keras/ring.py", "keras/rows.py", "keras/scalars.py", "keras/sharpness.py", "keras/tasks.py",
    "keras/treatments/base.py",
)  # fmt: skip
"""The files of the product that do."""
LIBRARIES = ("keras", "numpy", "tensorflow")


@cache
def code_version(treatment: str = "naive") -> str:
    """SHA-256 of the code and the libraries that decide the numbers of a run with this treatment."""
    found = hashlib.sha256()
    here, product = Path(__file__).parent, Path(lossguard.__file__).parent
    paths = [*(here / name for name in TRAINS), *(product / name for name in PRODUCT)]
    if treatment != "naive":
        room, *module = MAKERS[treatment][0].split(".")
        paths.append((here if room == "lab" else product).joinpath(*module).with_suffix(".py"))
    for path in paths:
        found.update(path.read_bytes())
    for library in LIBRARIES:
        found.update(library_version(library).encode())
    return found.hexdigest()


def library_version(library: str) -> str:
    """The version of a library, under whichever name it is installed."""
    for name in (library, f"{library}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "absent"


class Cache:
    """A folder of runs.

    Args:
        folder: made if it is not there.
        fingerprint: of the data (`lab.data`).
        reference: click AUC of a healthy training on them.
    """

    def __init__(self, folder: Path, fingerprint: str, reference: float) -> None:
        self.folder = folder
        self._reference = reference
        self.fingerprint = fingerprint
        folder.mkdir(parents=True, exist_ok=True)

    def key(self, config: Config) -> str:
        """The run's name."""
        text = json.dumps([config.document(), self.fingerprint, code_version(config.treatment)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def load(self, config: Config) -> Outcome | None:
        """The outcome; None if it is not there. What older detectors have judged is judged anew, from the trace."""
        try:
            document = json.loads((self.folder / f"{self.key(config)}.json").read_text())
        except FileNotFoundError:
            return None
        document["config"] = Config.of(document["config"])
        document["final"] = {name: from_json_number(value) for name, value in document["final"].items()}
        for name in ("curve", "sharpness"):
            document[name] = [[from_json_number(value) for value in point] for point in document[name]]
        found = Outcome(**document)
        if found.judged != judge.version():
            frames = self.trace(config).attempts[0]
            found = replace(found, **judge.verdicts(config, frames, found.final, self._reference))
            self._write(found)
        return found

    def store(self, outcome: Outcome, frames: Frames, meta: dict[str, object]) -> None:
        """Keep a run."""
        key = self.key(outcome.config)
        part = self.folder / f"{key}.{os.getpid()}.tmp.npz"
        npz.write(part, frames, meta)
        part.rename(self.folder / f"{key}.npz")
        self._write(outcome)

    def _write(self, outcome: Outcome) -> None:
        key = self.key(outcome.config)
        part = self.folder / f"{key}.{os.getpid()}.tmp"
        part.write_text(json.dumps(to_json(asdict(outcome) | {"config": outcome.config.document()})))
        part.rename(self.folder / f"{key}.json")

    def trace(self, config: Config) -> Trace:
        """The recorded run.

        Raises:
            TraceError: it is not there.
        """
        return npz.read(self.folder / f"{self.key(config)}.npz")
