"""The scan of Orbax checkpoints: those that Orbax and Keras wrote, damaged ones, and made ones."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lossguard.gate import orbax, zarr
from lossguard.gate.artifact import model_kind
from lossguard.gate.errors import NotAModel
from lossguard.gate.findings import look
from lossguard.gate.scan import scan_artifact

tensorstore: Any = pytest.importorskip("tensorstore", reason='TensorStore is missing: pip install "lossguard[orbax]"')
CHECKPOINTS = Path(__file__).resolve().parents[1] / "golden" / "exports" / "orbax"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINTS, tmp_path / "orbax"))


@pytest.mark.parametrize(("name", "tensors", "slots"), [("good", 3, 1), ("keras", 11, 7)])
def test_a_sound_checkpoint_is_read_to_its_end(name: str, tensors: int, slots: int) -> None:
    scan = scan_artifact(CHECKPOINTS / name)
    assert (scan.kind, scan.complete, scan.note) == ("orbax", True, "")
    assert (scan.tensors, scan.slots, scan.nonfinite, scan.nonfinite_slots) == (tensors, slots, {}, {})


@pytest.mark.parametrize(
    ("name", "weights", "slots"),
    [
        ("nan_slot", {}, {"opt_state.0.mu": 1}),
        ("nan_plain", {"params.dense.kernel": 1, "params.dense.bias": 4}, {}),
        ("steps/5", {}, {"optimizer/opt_state.0.mu": 1}),
    ],
)
def test_nan_and_inf_are_found_and_the_optimizers_told_apart(name: str, weights: Any, slots: Any) -> None:
    scan = scan_artifact(CHECKPOINTS / name)
    assert (scan.complete, scan.nonfinite, scan.nonfinite_slots) == (True, weights, slots)


def test_without_tensorstore_the_scan_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    scan = scan_artifact(CHECKPOINTS / "good")
    assert not scan.complete
    assert 'pip install "lossguard[orbax]"' in scan.note


def test_a_missing_chunk_is_never_read_as_zeros(copied: Path) -> None:
    (copied / "nan_plain" / "params.dense.kernel" / "0.0").unlink()
    scan = scan_artifact(copied / "nan_plain")
    assert not scan.complete
    assert "params.dense.kernel cannot be read" in scan.note


def test_every_damage_to_a_database_makes_the_scan_incomplete(copied: Path) -> None:
    good = copied / "good"
    files = [file for file in good.rglob("*") if file.is_file() and file.parent.name == "d"]
    files.append(good / "manifest.ocdbt")
    damaged = 0
    for file in files:
        content = file.read_bytes()
        for broken in (content[: len(content) // 2], bytes([*content[:-9], content[-9] ^ 0xFF, *content[-8:]])):
            file.write_bytes(broken)
            scan = scan_artifact(good)
            damaged += not scan.complete
            # A file that no array lies in may break without harm; then everything was read all the same.
            assert scan.complete == (scan.tensors == 3), scan
        file.write_bytes(content)
    assert damaged >= 4
    assert scan_artifact(good).complete


def test_an_array_that_is_named_and_not_there_is_missed(copied: Path) -> None:
    shutil.rmtree(copied / "nan_plain" / "opt_state.0.mu")
    assert "opt_state.0.mu is named in _METADATA" in scan_artifact(copied / "nan_plain").note
    metadata = copied / "good" / "_METADATA"
    document = json.loads(metadata.read_bytes())
    metadata.write_text(json.dumps(document | {"tree_metadata": None}))
    assert "names no arrays" in scan_artifact(copied / "good").note


def test_what_orbax_did_not_finish_is_refused_or_incomplete(copied: Path) -> None:
    (copied / "good" / "manifest.ocdbt").unlink()
    assert "never merged" in scan_artifact(copied / "good").note
    unfinished = copied / "5.orbax-checkpoint-tmp-3"
    (copied / "keras").rename(unfinished)
    with pytest.raises(NotAModel, match="did not finish"):
        model_kind(unfinished)
    with pytest.raises(NotAModel, match="name one of them"):
        model_kind(copied / "steps")


def test_a_chunk_that_memory_might_not_hold_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orbax, "MAX_CHUNK_BYTES", 20)
    scan = scan_artifact(CHECKPOINTS / "nan_slot")
    assert not scan.complete
    assert "chunk_byte_size" in scan.note
    monkeypatch.setattr(zarr, "PIECE_BYTES", 7)
    assert scan_artifact(CHECKPOINTS / "good").complete  # it is read in pieces


def test_an_array_of_many_chunks_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orbax, "BLOCK_BYTES", 4096)
    values = np.ones((300, 70), np.float32)
    values[299, 69] = np.inf
    spec = {"driver": "zarr", "kvstore": f"file://{tmp_path}/checkpoint/kernel/", "metadata": {"chunks": [16, 16]}}
    tensorstore.open(spec, create=True, dtype="float32", shape=values.shape).result().write(values).result()
    leaf = {"key_metadata": [{"key": "kernel"}], "value_metadata": {"value_type": "np.ndarray"}}
    (tmp_path / "checkpoint" / "_METADATA").write_text(json.dumps({"tree_metadata": {"('kernel',)": leaf}}))
    sizes: list[int] = []
    monkeypatch.setattr(orbax, "look", lambda block: sizes.append(block.nbytes) or look(block))
    scan = scan_artifact(tmp_path / "checkpoint")
    assert (scan.complete, scan.nonfinite, scan.values) == (True, {"kernel": 1}, values.size)
    assert max(sizes) <= 4096
    assert sum(sizes) == values.nbytes


def write_array(folder: Path, values: np.ndarray, chunk: list[int], compressor: dict[str, Any] | None) -> Path:
    """A checkpoint of one array, as TensorStore writes it."""
    spec = {"driver": "zarr", "kvstore": f"file://{folder}/kernel/",
            "metadata": {"chunks": chunk, "compressor": compressor}}  # fmt: skip
    tensorstore.open(spec, create=True, dtype=values.dtype.name, shape=values.shape).result().write(values).result()
    leaf = {"key_metadata": [{"key": "kernel"}], "value_metadata": {"value_type": "np.ndarray"}}
    (folder / "_METADATA").write_text(json.dumps({"tree_metadata": {"('kernel',)": leaf}}))
    return folder / "kernel"


@pytest.mark.parametrize("compressor", [None, {"id": "zstd", "level": 1}, {"id": "zlib", "level": 1}], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize(("shape", "chunk"), [((), []), ((7,), [3]), ((40, 33), [16, 33]), ((5, 4, 3), [2, 2, 2])])
def test_the_quick_look_and_tensorstore_find_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressor: Any, dtype: str, shape: tuple[int, ...], chunk: Any
) -> None:
    monkeypatch.setattr(orbax, "LOOK_BYTES", 64)
    monkeypatch.setattr(zarr, "PIECE_BYTES", 100)
    values = np.random.default_rng(4).normal(size=shape).astype(tensorstore.dtype(dtype).numpy_dtype)
    asked: list[str] = []
    slow = orbax._array
    monkeypatch.setattr(orbax, "_array", lambda name, *rest: asked.append(name) or slow(name, *rest))
    write_array(tmp_path / "good", values, chunk, compressor)
    scan = scan_artifact(tmp_path / "good")
    assert (scan.complete, scan.nonfinite, scan.values, scan.tensors) == (True, {}, values.size, 1)
    assert asked == ([] if compressor is None or compressor["id"] == "zstd" else ["kernel"])
    for bad in (np.nan, -np.inf):
        values[(-1,) * len(shape)] = bad
        write_array(tmp_path / str(bad), values, chunk, compressor)
        assert scan_artifact(tmp_path / str(bad)).nonfinite == {"kernel": 1}


@pytest.mark.parametrize("compressor", [None, {"id": "zstd", "level": 1}], ids=str)
def test_a_chunk_of_another_length_is_never_taken_for_a_whole_one(tmp_path: Path, compressor: Any) -> None:
    values = np.random.default_rng(4).normal(size=(40, 8)).astype(np.float32)
    array = write_array(tmp_path, values, [16, 8], compressor)
    content = (array / "1.0").read_bytes()
    half = zstandard.compress(values[:8].tobytes()) if compressor else content[: len(content) // 2]
    double = zstandard.compress(values[:32].tobytes()) if compressor else content * 2
    for broken in (b"", content[:-1], content[: len(content) // 2], half, double, b"x"):
        (array / "1.0").write_bytes(broken)
        scan = scan_artifact(tmp_path)
        assert not scan.complete, broken[:20]
        assert "kernel cannot be read" in scan.note
    (array / "1.0").unlink()
    assert not scan_artifact(tmp_path).complete
    (array / "1.0").write_bytes(content)
    assert scan_artifact(tmp_path).complete


@pytest.mark.parametrize(
    "change",
    [{"zarr_format": 3}, {"filters": [{"id": "delta"}]}, {"dtype": ">f4"}, {"dtype": "<i4"}, {"dtype": [["a", "<f4"]]},
     {"compressor": {"id": "blosc"}}, {"compressor": 3}, {"chunks": [0, 2]}, {"chunks": [2]}, {"chunks": None},
     {"shape": ["x", 2]}],
    ids=str,
)  # fmt: skip
def test_what_is_not_the_plain_case_is_left_to_tensorstore(change: dict[str, Any]) -> None:
    document = {"chunks": [2, 2], "compressor": {"id": "zstd"}, "dtype": "<f4", "filters": None, "shape": [4, 3],
                "zarr_format": 2, "order": "C", "fill_value": None}  # fmt: skip
    layout = zarr.layout_of(json.dumps(document).encode())
    assert layout is not None
    assert (layout.chunk_bytes, list(layout.chunk_keys())) == (16, ["0.0", "0.1", "1.0", "1.1"])
    assert zarr.layout_of(json.dumps(document | change).encode()) is None
    assert zarr.layout_of(b"[" * 100_000) is None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_boxes_hold_every_number_once_and_no_part_of_a_chunk(data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, 3))
    shape = data.draw(st.tuples(*[st.integers(0, 9)] * rank))
    chunk = data.draw(st.tuples(*[st.integers(1, 5)] * rank))
    most = data.draw(st.integers(1, 40))
    seen = np.zeros(shape, int)
    for box in orbax.boxes(shape, chunk, most):
        seen[box] += 1
        assert all(part.start % size == 0 for part, size in zip(box, chunk, strict=True))
        numbers = int(np.prod([part.stop - part.start for part in box]))
        assert numbers <= max(most, int(np.prod(np.minimum(chunk, shape))))
    assert (seen == 1).all()


def test_an_array_whose_name_holds_a_slash_is_found_without_a_database(tmp_path: Path) -> None:
    item = tmp_path / "checkpoint" / "state"
    tree = {}
    for name, values in (("mlp/linear", np.ones(3, np.float32)), ("opt_state.0", np.array([np.nan], np.float32))):
        spec = {"driver": "zarr", "kvstore": f"file://{item}/{name}/"}
        tensorstore.open(spec, create=True, dtype="float32", shape=values.shape).result().write(values).result()
        tree[f"('{name}',)"] = {"key_metadata": [{"key": name}], "value_metadata": {"value_type": "jax.Array"}}
    (item / "_METADATA").write_text(json.dumps({"tree_metadata": tree}))
    (tmp_path / "checkpoint" / "_CHECKPOINT_METADATA").write_text("{}")
    scan = scan_artifact(tmp_path / "checkpoint")
    assert (scan.complete, scan.tensors, scan.nonfinite_slots) == (True, 2, {"state/opt_state.0": 1})
