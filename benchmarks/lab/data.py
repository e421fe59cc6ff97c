"""The examples of the lab: the demo's, with a raw column for the ablations, and cut at a day."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lossguard.demo import features, kuairand, stream
from lossguard.demo.features import Examples
from lossguard.demo.tables import USER_CODES, USER_TEXT

RAW_UNIT = 100.0
"""Followers in a unit of the raw column: its standard deviation is 148 on KuaiRand-Pure, its largest value 19,862."""
_FIRST_SPARSE = 1 + len(USER_TEXT) + sum(not name.startswith("onehot") for name in USER_CODES)
SPARSE = tuple(range(_FIRST_SPARSE, _FIRST_SPARSE + sum(name.startswith("onehot") for name in USER_CODES)))
"""Places of the columns that play the deprecated sparse features: the twelve anonymised one-hot codes of a user."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the rows come from.

    Attributes:
        folder: of KuaiRand-Pure in either form; None generates a stream.
        days, rows_per_day: of the generated stream.
        reference: the click AUC of a healthy training, which the hindsight rule measures from (`lab.hindsight`).
    """

    folder: str | None = None
    days: int = 14
    rows_per_day: int = 16_000

    @property
    def reference(self) -> float:
        """Click AUC of healthy runs of about one pass, below which by 0.05 a run is lost."""
        return 0.67 if self.folder is not None else 0.60


@dataclass(frozen=True, slots=True, eq=False)
class LabData:
    """Encoded rows.

    Attributes:
        examples: the demo's encoding.
        raw: float32 [N, 1], the follower count in units of `RAW_UNIT`, not normalised.
        fingerprint: SHA-256 of the arrays.
    """

    examples: Examples
    raw: NDArray[np.float32]
    fingerprint: str

    def until(self, day: int) -> "LabData":
        """Without the rows after `day`."""
        kept = int(np.searchsorted(self.examples.day, day + 1))
        if kept == len(self.examples):
            return self
        one = self.examples
        cut = replace(
            one,
            day=one.day[:kept],
            categorical=one.categorical[:kept],
            numeric=one.numeric[:kept],
            labels={task: values[:kept] for task, values in one.labels.items()},
        )
        return LabData(cut, self.raw[:kept], self.fingerprint)


def read(source: Source) -> LabData:
    """The rows of a source.

    Raises:
        DataError: the folder is not what it should be.
    """
    if source.folder is not None:
        tables = kuairand.read(Path(source.folder))
    else:
        tables = stream.generate(0, days=source.days, rows_per_day=source.rows_per_day)
    examples = features.encode(tables)
    user = features.join(tables.interactions["user_id"], tables.users["user_id"])
    fans = np.append(tables.users["fans_user_num"].astype(np.float64), 0.0)[user] / RAW_UNIT
    raw = np.nan_to_num(fans).astype(np.float32)[:, None]
    digest = hashlib.sha256()
    for array in (examples.day, examples.categorical, examples.numeric, raw, *examples.labels.values()):
        digest.update(np.ascontiguousarray(array).tobytes())
    return LabData(examples, raw, digest.hexdigest())
