"""Digests and kinds of artifacts."""

import os
import shutil
from pathlib import Path

import pytest
from gate_runs import make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from lossguard.gate.artifact import model_kind
from lossguard.gate.digest import VERDICT_NAME, artifact_digest
from lossguard.gate.errors import ArtifactChanged, ArtifactUnreadable, NotAModel

GOLDEN = "sha256:5aa1d3c623e2b907fdfec56f70ccfdebaa49d7c5216e2bc0981d9307864c3a87"


def test_the_digest_of_a_known_tree_never_changes(tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01graph")
    (tmp_path / "fingerprint.pb").write_bytes(b"fp")
    (tmp_path / "variables" / "variables.index").write_bytes(b"index")
    (tmp_path / "variables" / "variables.data-00000-of-00001").write_bytes(b"\x00\x01" * 5000)
    assert artifact_digest(tmp_path) == GOLDEN


def test_the_digest_does_not_depend_on_where_the_tree_lies_or_on_empty_folders(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    (copy / "empty").mkdir()
    os.utime(copy / "saved_model.pb", (1, 1))
    assert artifact_digest(copy) == artifact_digest(model)


def test_a_file_is_a_tree_of_one(tmp_path: Path) -> None:
    alone = tmp_path / "ranker.keras"
    alone.write_bytes(b"zip")
    (tmp_path / "folder").mkdir()
    shutil.copy(alone, tmp_path / "folder" / "ranker.keras")
    assert artifact_digest(alone) == artifact_digest(tmp_path / "folder")


def test_the_verdict_at_the_top_is_not_part_of_the_artifact_and_one_below_is(model: Path) -> None:
    before = artifact_digest(model)
    (model / VERDICT_NAME).write_text("{}")
    assert artifact_digest(model) == before
    (model / "assets" / VERDICT_NAME).write_text("{}")
    assert artifact_digest(model) != before


@pytest.mark.parametrize("change", ["flip", "append", "cut", "rename", "add", "remove", "swap"])
def test_any_change_of_a_byte_or_a_name_changes_the_digest(model: Path, change: str) -> None:
    before = artifact_digest(model)
    data = model / "variables" / "variables.data-00000-of-00001"
    content = data.read_bytes()
    match change:
        case "flip":
            data.write_bytes(content[:70] + bytes([content[70] ^ 1]) + content[71:])
        case "append":
            data.write_bytes(content + b"\0")
        case "cut":
            data.write_bytes(content[:-1])
        case "rename":
            data.rename(data.with_name("variables.data-00000-of-00002"))
        case "add":
            (model / "assets" / "vocabulary.txt").write_text("")
        case "remove":
            (model / "fingerprint.pb").unlink()
        case "swap":
            index = model / "variables" / "variables.index"
            data.write_bytes(index.read_bytes())
            index.write_bytes(content)
    assert artifact_digest(model) != before


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text("ab", min_size=1, max_size=3), st.binary(max_size=5), min_size=1, max_size=4), st.data())
def test_two_different_trees_never_share_a_digest(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, bytes], data: st.DataObject
) -> None:
    other = data.draw(st.dictionaries(st.text("ab", min_size=1, max_size=3), st.binary(max_size=5), min_size=1))
    digests = []
    for files in (tree, other):
        folder = tmp_path_factory.mktemp("tree")
        for name, content in files.items():
            (folder / name).write_bytes(content)
        digests.append(artifact_digest(folder))
        shutil.rmtree(folder)
    assert (digests[0] == digests[1]) == (tree == other)


def test_a_link_out_of_the_tree_is_refused_and_one_within_it_is_its_target(model: Path, tmp_path: Path) -> None:
    (model / "assets" / "again").symlink_to(Path("..") / "fingerprint.pb")
    linked = artifact_digest(model)
    (model / "assets" / "again").unlink()
    (model / "assets" / "again").write_bytes(b"fp")
    assert artifact_digest(model) == linked
    secret = tmp_path / "secret"
    secret.write_text("outside")
    (model / "assets" / "out").symlink_to(secret)
    with pytest.raises(ArtifactUnreadable, match="outside of the artifact"):
        artifact_digest(model)


@pytest.mark.parametrize(("what", "words"), [("nothing", "link to nothing"), ("folder", "link to a folder"),
                                             ("loop", "link to nothing"), ("pipe", "neither a file")])  # fmt: skip
def test_what_cannot_be_part_of_an_export_is_refused(model: Path, what: str, words: str) -> None:
    odd = model / "assets" / "odd"
    match what:
        case "nothing":
            odd.symlink_to("nowhere")
        case "folder":
            odd.symlink_to(model / "variables")
        case "loop":
            odd.symlink_to("odd")
        case "pipe":
            os.mkfifo(odd)
    with pytest.raises(ArtifactUnreadable, match=words):
        artifact_digest(model)


def test_a_file_that_grows_while_it_is_read_is_noticed(model: Path) -> None:
    data = model / "variables" / "variables.data-00000-of-00001"

    def grow(*_: object) -> None:
        with open(data, "ab") as stream:
            stream.write(b"more")

    with pytest.raises(ArtifactChanged, match="wait until the export is done"):
        artifact_digest(model, seen=grow)


def test_a_path_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreadable, match="does not exist"):
        artifact_digest(tmp_path / "nowhere")


def test_models_are_recognized_by_their_files(model: Path, tmp_path: Path) -> None:
    assert model_kind(model) == "savedmodel"
    for name, kind in (("a.keras", "keras"), ("b.weights.h5", "weights")):
        (tmp_path / name).write_bytes(b"x")
        assert model_kind(tmp_path / name) == kind
    (tmp_path / "orbax").mkdir()
    (tmp_path / "orbax" / "_CHECKPOINT_METADATA").write_text("{}")
    assert model_kind(tmp_path / "orbax") == "orbax"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "it is empty"),
        (["notes.txt", "a.csv"], "it holds a.csv, notes.txt"),
        (["7/saved_model.pb"], "name one of them"),
        (["checkpoint", "ckpt-1.index"], "cannot be served"),
        (["saved_model.pb", "variables/variables.data-00000-of-00001"], "did not finish"),
    ],
)
def test_a_folder_that_is_no_model_gets_a_sentence_that_says_what_to_do(
    tmp_path: Path, files: list[str], words: str
) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    with pytest.raises(NotAModel, match=words):
        model_kind(folder)


def test_an_empty_or_partial_file_is_no_model(tmp_path: Path) -> None:
    make_model(tmp_path / "export")
    (tmp_path / "export" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(NotAModel, match="did not finish"):
        model_kind(tmp_path / "export")
    (tmp_path / "export" / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(NotAModel, match="part of a SavedModel"):
        model_kind(tmp_path / "export" / "saved_model.pb")
    (tmp_path / "model.pkl").write_bytes(b"x")
    with pytest.raises(NotAModel, match="not a model that the gate knows"):
        model_kind(tmp_path / "model.pkl")
    with pytest.raises(NotAModel, match="does not exist"):
        model_kind(tmp_path / "nowhere")
