"""Reading KuaiRand-Pure in both of its forms, and what is said when a folder is not that."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from lossguard.demo import features, kuairand
from lossguard.demo.tables import COLUMNS, DataError, Tables

Write = Callable[[Tables, Path, str], Path]


def _same(one: Tables, other: Tables) -> None:
    for table, columns in COLUMNS.items():
        for column in columns:
            first, second = getattr(one, table)[column], getattr(other, table)[column]
            assert np.array_equal(first, second, equal_nan=first.dtype.kind == "f"), f"{table}.{column}"


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_what_was_written_is_read(small: Tables, write: Write, tmp_path: Path, form: str) -> None:
    _same(kuairand.read(write(small, tmp_path, form)), small)


def test_the_archive_may_be_named_by_its_outer_folder(small: Tables, write: Write, tmp_path: Path) -> None:
    write(small, tmp_path / "data", "csv")
    _same(kuairand.read(tmp_path), small)


def test_only_the_last_days_are_kept(small: Tables, write: Write, tmp_path: Path) -> None:
    tables = kuairand.read(write(small, tmp_path, "parquet"), days=3)
    assert list(np.unique(tables.interactions["date"])) == [20220506, 20220507, 20220508]


def test_several_log_files_are_one_log_in_time_order(small: Tables, write: Write, tmp_path: Path) -> None:
    log = small.interactions
    early = log["date"] < 20220502
    for name, rows in (("log_standard_4_08_to_4_21_pure.csv", early), ("log_standard_4_22_to_5_08_pure.csv", ~early)):
        part = Tables({key: column[rows] for key, column in log.items()}, small.users, small.videos)
        folder = write(part, tmp_path / name, "csv")
        (folder / "log_standard_4_22_to_5_08_pure.csv").rename(tmp_path / f"_{name}")
        for other in folder.iterdir():
            other.rename(tmp_path / other.name)
        folder.rmdir()
        (tmp_path / f"_{name}").rename(tmp_path / name)
    _same(kuairand.read(tmp_path), small)


def test_a_missing_value_is_nan_or_an_empty_text(small: Tables, write: Write, tmp_path: Path) -> None:
    folder = write(small, tmp_path, "parquet")
    table = parquet.read_table(folder / "video_features.parquet")
    for name, value in (("tag", None), ("server_width", None)):
        column = [value, *table[name].to_pylist()[1:]]
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(column, table[name].type))
    parquet.write_table(table, folder / "video_features.parquet")
    tables = kuairand.read(folder)
    assert tables.videos["tag"][0] == ""
    assert np.isnan(tables.videos["server_width"][0])
    assert np.all(np.isfinite(features.encode(tables).numeric))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere.*zenodo\.org/records/10439422"):
        kuairand.read(tmp_path / "nowhere")


def test_an_empty_folder_says_what_should_be_in_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither interactions\.parquet nor log_standard_"):
        kuairand.read(tmp_path)


def test_a_file_that_is_missing_is_named(small: Tables, write: Write, tmp_path: Path) -> None:
    (write(small, tmp_path, "csv") / "user_features_pure.csv").unlink()
    with pytest.raises(DataError, match=r"has no user_features_pure\.csv"):
        kuairand.read(tmp_path)


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_column_that_is_missing_is_named(small: Tables, write: Write, tmp_path: Path, form: str) -> None:
    folder = write(small, tmp_path, form)
    log = next(path for path in folder.iterdir() if path.name.startswith(("interactions", "log")))
    if form == "parquet":
        parquet.write_table(parquet.read_table(log).drop_columns(["play_time_ms"]), log)
    else:
        log.write_text(log.read_text().replace("play_time_ms", "watched", 1))
    with pytest.raises(DataError, match=r"the column 'play_time_ms' is missing"):
        kuairand.read(folder)


def test_a_column_of_words_where_numbers_belong_is_named(small: Tables, write: Write, tmp_path: Path) -> None:
    folder = write(small, tmp_path, "parquet")
    log = parquet.read_table(folder / "interactions.parquet")
    words = pa.array(["much"] * len(log))
    log = log.set_column(log.schema.get_field_index("play_time_ms"), "play_time_ms", words)
    parquet.write_table(log, folder / "interactions.parquet")
    with pytest.raises(DataError, match="'play_time_ms' must hold numbers, found string"):
        kuairand.read(folder)


def test_a_file_that_is_no_parquet_is_named(small: Tables, write: Write, tmp_path: Path) -> None:
    folder = write(small, tmp_path, "parquet")
    (folder / "interactions.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"interactions\.parquet cannot be read .*download it again"):
        kuairand.read(folder)


def test_too_few_days_are_said(small: Tables, write: Write, tmp_path: Path) -> None:
    short = small.interactions["date"] < 20220430
    log = {key: column[short] for key, column in small.interactions.items()}
    with pytest.raises(DataError, match="holds 5 days of interactions, 14 are needed"):
        kuairand.read(write(Tables(log, small.users, small.videos), tmp_path, "parquet"))


def test_the_real_subset_is_read_whole(shared: Path) -> None:
    tables = kuairand.read(shared / "data" / "kuairand")
    assert len(tables.interactions["time_ms"]) == 228_329
    assert len(tables.users["user_id"]) == 25_156
    assert len(tables.videos["video_id"]) == 6_361
    assert np.mean(tables.interactions["is_click"]) == pytest.approx(0.442, abs=0.001)
