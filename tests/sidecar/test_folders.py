"""Journals that a sidecar was given and cannot read: each is told of, and none holds up the others."""

from pathlib import Path

import pytest

from lossguard.sidecar.folders import JournalFolders

ATTEMPT = "0" * 32


def test_what_is_in_trouble_is_told_of_once_and_the_rest_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good" / "ads" / "r" / ATTEMPT).mkdir(parents=True)
    (tmp_path / "good" / "ads" / "circle").symlink_to("circle")
    (tmp_path / "good" / "ads" / "linked").symlink_to("r")
    (tmp_path / "good" / "note").write_text("no folder")
    (tmp_path / "good" / "lost+found" / "no run").mkdir(parents=True)
    long, late = tmp_path / ("x" * 300), tmp_path / "late"
    folders = JournalFolders([long, late, tmp_path / "good"])
    for _ in range(3):
        assert sorted(path.name for path in folders()) == ["linked", "r"]
    assert "name too long" in folders.trouble[long]
    assert len(caplog.records) == 2
    (late / "ads" / "r").mkdir(parents=True)
    assert late / "ads" / "r" in folders()
    assert set(folders.trouble) == {long}


@pytest.mark.parametrize(("level", "given"), [("project", "ads"), ("run", "ads/r")])
def test_a_folder_of_the_wrong_level_is_named(tmp_path: Path, level: str, given: str) -> None:
    (tmp_path / "ads" / "r" / ATTEMPT / "rejected").mkdir(parents=True)
    folders = JournalFolders([tmp_path / given])
    assert folders() == []
    assert f"is the folder of one {level}" in folders.trouble[tmp_path / given]
