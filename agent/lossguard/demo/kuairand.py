"""Reads KuaiRand-Pure: a folder with the original CSV logs, or a parquet subset of it.

Guarantees: the last 14 days of the standard log in time order, joined with nothing and changed in nothing but the
missing values (NaN, ""). The two forms give the same tables where they hold the same rows. Anything that is not such
a folder is a `DataError` that says which file or column is missing and where to get it.

The data are Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos",
CIKM 2022, doi 10.1145/3511808.3557624, licensed CC BY-SA 4.0; download: https://zenodo.org/records/10439422.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lossguard.demo.tables import COLUMNS, USER_TEXT, VIDEO_TEXT, Column, DataError, Tables

DAYS = 14
"""One training: 13 days to learn from, one to be judged on."""

PARQUET = {
    "interactions": "interactions.parquet",
    "users": "user_features.parquet",
    "videos": "video_features.parquet",
}
CSV = {
    "interactions": "log_standard_*_pure.csv",
    "users": "user_features_pure.csv",
    "videos": "video_features_basic_pure.csv",
}
_TEXT = frozenset(USER_TEXT + VIDEO_TEXT)
_HOW = (
    "--data takes the folder `data` of KuaiRand-Pure (https://zenodo.org/records/10439422, KuaiRand-Pure.tar.gz) or "
    "its parquet subset; without --data the demo generates a stream"
)


def read(folder: Path, *, days: int = DAYS) -> Tables:
    """The tables in `folder`.

    Args:
        folder: holds the CSV files of KuaiRand-Pure (directly, or in a folder `data`), or the parquet subset.
        days: how many days to keep, counted from the last one.

    Raises:
        DataError: no such folder, a file or a column is missing, a file is unreadable, or there are too few days.
    """
    if days < 2:
        raise DataError(f"days: at least 2 are needed, one to learn from and one to be judged on, got {days}")
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}: {_HOW}")
    files = _files(folder)
    log = _read("interactions", files["interactions"])
    dates = np.unique(log["date"])
    if len(dates) < days:
        raise DataError(f"{folder} holds {len(dates)} days of interactions, {days} are needed: {_HOW}")
    kept = np.flatnonzero(log["date"] >= dates[-days])
    kept = kept[np.argsort(log["time_ms"][kept], kind="stable")]
    return Tables(
        interactions={name: column[kept] for name, column in log.items()},
        users=_read("users", files["users"]),
        videos=_read("videos", files["videos"]),
    )


def _files(folder: Path) -> dict[str, list[Path]]:
    """The files of each table; the parquet subset wins where both are there."""
    places = [(folder, PARQUET), (folder, CSV), (folder / "data", CSV)]
    for place, patterns in places:
        found = {table: sorted(place.glob(pattern)) for table, pattern in patterns.items()}
        if all(found.values()):
            return found
        if any(found.values()):
            absent = next(patterns[table] for table, paths in found.items() if not paths)
            raise DataError(f"{str(place)!r} has no {absent}: {_HOW}")
    raise DataError(f"{str(folder)!r} holds neither {PARQUET['interactions']} nor {CSV['interactions']}: {_HOW}")


def _read(table: str, paths: Sequence[Path]) -> dict[str, Column]:
    parts = [_read_file(table, path) for path in paths]
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _read_file(table: str, path: Path) -> dict[str, Column]:
    try:
        import pyarrow
        from pyarrow import csv, parquet
    except ImportError:
        raise DataError('reading KuaiRand needs pyarrow: pip install "lossguard[demo]"') from None
    wanted = list(COLUMNS[table])
    try:
        names = parquet.read_schema(path).names if path.suffix == ".parquet" else csv.open_csv(path).schema.names
        missing = [name for name in wanted if name not in names]
        if missing:
            raise DataError(f"{path.name}: the column {missing[0]!r} is missing, found {', '.join(names)}; {_HOW}")
        if path.suffix == ".parquet":
            data = parquet.read_table(path, columns=wanted)
        else:
            text = {name: pyarrow.string() for name in wanted if name in _TEXT}
            options = csv.ConvertOptions(include_columns=wanted, column_types=text, strings_can_be_null=True)
            data = csv.read_csv(path, convert_options=options)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path.name} cannot be read ({error}); download it again: {_HOW}") from None
    return {name: _column(path, name, data[name]) for name in wanted}


def _column(path: Path, name: str, data: Any) -> Column:
    """One Arrow column as an array: text as str, everything else as int64, or float64 where values are missing."""
    if name in _TEXT:
        return np.array([value or "" for value in data.to_pylist()], dtype=np.str_)
    values = data.to_numpy()
    if values.dtype.kind not in "iufb":
        raise DataError(f"{path.name}: the column {name!r} must hold numbers, found {data.type}; {_HOW}")
    whole = values.dtype.kind in "iub" or (
        bool(np.all(np.isfinite(values))) and bool(np.all(values == np.floor(values)))
    )
    return values.astype(np.int64 if whole else np.float64)
