"""A small stream, and the two forms in which KuaiRand lies on a disk."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from lossguard.demo import stream
from lossguard.demo.features import Examples, encode
from lossguard.demo.tables import Tables

NAMES = {
    "parquet": ("interactions.parquet", "user_features.parquet", "video_features.parquet"),
    "csv": ("log_standard_4_22_to_5_08_pure.csv", "user_features_pure.csv", "video_features_basic_pure.csv"),
}
Write = Callable[[Tables, Path, str], Path]


@pytest.fixture(scope="session")
def small() -> Tables:
    return stream.generate(3, rows_per_day=300, users=400, videos=150)


@pytest.fixture(scope="session")
def examples(small: Tables) -> Examples:
    return encode(small)


@pytest.fixture(scope="session")
def write() -> Write:
    def write(tables: Tables, folder: Path, form: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        parts = (tables.interactions, tables.users, tables.videos)
        for name, columns in zip(NAMES[form], parts, strict=True):
            table = pa.table({key: pa.array(values) for key, values in columns.items()})
            if form == "parquet":
                parquet.write_table(table, folder / name)
            else:
                csv.write_csv(table, folder / name)
        return folder

    return write
