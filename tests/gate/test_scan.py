"""The scan for NaN and Inf: real exports, made ones, and bytes that are neither."""

from pathlib import Path

import numpy as np
import pytest
from gate_runs import constant_of, graph_with, make_model, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from lossguard.gate.bundle import BundleError, _unsnap, read_index
from lossguard.gate.client import question_about
from lossguard.gate.errors import ArtifactChanged
from lossguard.gate.findings import BLOCK_BYTES, look
from lossguard.gate.scan import scan_artifact

EXPORTS = Path(__file__).resolve().parents[1] / "golden" / "exports"


@pytest.mark.parametrize("name", ["good", "good.keras", "good.weights.h5"])
def test_a_sound_export_of_keras_is_read_to_its_end(name: str) -> None:
    scan = scan_artifact(EXPORTS / name)
    assert (scan.complete, scan.nonfinite) == (True, {})
    assert scan.values >= 81


@pytest.mark.parametrize("name", ["nan", "nan.keras", "nan.weights.h5"])
def test_nan_and_inf_are_found_and_named(name: str) -> None:
    scan = scan_artifact(EXPORTS / name)
    assert scan.complete
    assert set(scan.nonfinite.values()) == {2}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_number_is_found_wherever_it_stands(tmp_path: Path, dtype: str, value: float) -> None:
    count = BLOCK_BYTES // np.dtype(dtype).itemsize + 5
    for place in (0, count // 2, count - 6, count - 1):
        tensor = np.ones(count, dtype)
        tensor[place] = value
        model = make_model(tmp_path / f"{place}", {"a": np.ones(3, np.float32), "kernel": tensor, "n": np.int64(3)})
        scan = scan_artifact(model)
        assert (scan.complete, scan.nonfinite, scan.tensors) == (True, {"kernel": 1}, 2)


def test_numbers_whose_squares_overflow_are_finite_all_the_same() -> None:
    assert look(np.full(10, 3e38, np.float32))[0] == 0
    assert look(np.array([np.inf, -np.inf, 1.0]))[0] == 2


@pytest.mark.parametrize(
    ("code", "bits", "bad"),
    [(14, np.array([0x7F80, 0x3F80, 0xFFC0], np.uint16), 2), (24, np.array([0x7C, 0x3C, 0xFF], np.uint8), 2),
     (25, np.array([0x7F, 0x7E, 0xFF], np.uint8), 2)],
)  # fmt: skip
def test_narrow_floats_are_read_by_their_bits(tmp_path: Path, code: int, bits: np.ndarray, bad: int) -> None:
    (tmp_path / "export").mkdir()
    folder = make_model(tmp_path / "export" / "m")
    write_bundle(folder / "variables", {"kernel": bits}, {"kernel": code})
    scan = scan_artifact(folder)
    assert (scan.complete, scan.nonfinite, scan.values) == (True, {"kernel": bad}, 3)


def test_a_type_that_nobody_knows_makes_the_scan_incomplete(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    write_bundle(folder / "variables", {"kernel": np.ones(3, np.float32)}, {"kernel": 99})
    scan = scan_artifact(folder)
    assert not scan.complete
    assert "type 99" in scan.note


def test_missing_cut_or_wrong_data_makes_the_scan_incomplete(model: Path) -> None:
    data = model / "variables" / "variables.data-00000-of-00001"
    content = data.read_bytes()
    data.write_bytes(content[:-100])
    assert "ends before the tensor" in scan_artifact(model).note
    data.unlink()
    assert "cannot be read" in scan_artifact(model).note
    data.write_bytes(content)
    assert scan_artifact(model).complete
    (model / "variables" / "variables.index").write_bytes(b"index")
    assert "no tensor bundle" in scan_artifact(model).note


def test_a_model_without_variables_or_of_another_kind_is_not_called_finite(tmp_path: Path) -> None:
    (tmp_path / "frozen").mkdir()
    (tmp_path / "frozen" / "saved_model.pb").write_bytes(b"\x08\x01")
    assert "constants" in scan_artifact(tmp_path / "frozen").note
    (tmp_path / "orbax").mkdir()
    (tmp_path / "orbax" / "_CHECKPOINT_METADATA").write_text("{}")
    assert not scan_artifact(tmp_path / "orbax").complete
    for name in ("x.keras", "x.weights.h5"):
        (tmp_path / name).write_bytes(b"neither zip nor hdf5")
        assert not scan_artifact(tmp_path / name).complete


@pytest.mark.parametrize("where", ["link", "soft", "external", "virtual"])
def test_weights_that_lie_in_another_file_make_the_scan_incomplete(tmp_path: Path, where: str) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "raw").write_bytes(np.full(4, np.nan, np.float32).tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["kernel"] = np.full(4, np.nan, np.float32)
    with h5py.File(tmp_path / "ranker.weights.h5", "w") as file:
        file["bias"] = np.ones(3, np.float32)
        match where:
            case "link":
                file["layers/kernel"] = h5py.ExternalLink("other.h5", "kernel")
            case "soft":
                file["layers/kernel"] = h5py.SoftLink("/bias")
            case "external":
                file.create_dataset("layers/kernel", (4,), "f4", external=[(str(tmp_path / "raw"), 0, 16)])
            case "virtual":
                layout = h5py.VirtualLayout((4,), "f4")
                layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "kernel", (4,))
                file.create_virtual_dataset("layers/kernel", layout)
    scan = scan_artifact(tmp_path / "ranker.weights.h5")
    assert not scan.complete
    assert "in one file" in scan.note


def test_the_optimizers_tensors_are_told_apart(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "ranker.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 2), np.float32)
        file["optimizer/vars/2"] = np.array([1, np.nan, np.inf], np.float32)
    scan = scan_artifact(tmp_path / "ranker.weights.h5")
    assert (scan.complete, scan.tensors, scan.slots) == (True, 2, 1)
    assert (scan.nonfinite, scan.nonfinite_slots) == ({}, {"optimizer/vars/2": 2})


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_end_in_an_answer(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    index = folder / "variables.index"
    write_bundle(folder, {"kernel": np.ones(3, np.float32), "bias": np.ones(2, np.float32)})
    raw = bytearray(index.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    index.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        read_index(index)
    except BundleError:
        pass
    finally:
        index.unlink()


def test_snappy_is_understood_and_its_bombs_are_not() -> None:
    assert _unsnap(bytes([11, 3 << 2]) + b"abcd" + bytes([((7 - 4) << 2) | 1, 4])) == b"abcdabcdabc"
    for bad in (b"", b"\xff\xff\xff\xff\x7f", bytes([4, 3 << 2]) + b"ab", bytes([8, 0b1101, 9])):
        with pytest.raises(BundleError):
            _unsnap(bad)


def test_an_export_that_changes_between_scan_and_digest_is_noticed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossguard.gate import client

    def scan_then_change(path: Path) -> object:
        scan = scan_artifact(path)
        (model / "fingerprint.pb").write_bytes(b"fq")
        return scan

    monkeypatch.setattr(client, "scan_artifact", scan_then_change)
    with pytest.raises(ArtifactChanged):
        question_about(model, "default", "ranker", 300)


@pytest.mark.parametrize("in_function", [False, True])
@pytest.mark.parametrize(
    ("constant", "bad"),
    [
        (constant_of(np.array([1, np.nan, 3], np.float32)), 1),
        (constant_of(np.array([1, np.nan, np.nan])[None], 2), 2),
        (constant_of(np.array([1, np.nan], np.float16), 19), 1),
        (constant_of(np.array([0x3F80, 0xFFC0], np.uint16), 14), 1),
        (constant_of(np.array([0x3F80, 0xFF80], np.uint16), 14), 0),
        (constant_of(np.array([1, complex(0, np.nan)], np.complex64), 8), 1),
        # One number stands for all of the shape.
        (constant_of(np.zeros(5, np.float32), field=5, raw=np.float32(np.nan).tobytes()), 1),
        (constant_of(np.zeros(2, np.float32), 14, field=13, raw=b"\xc0\xff\x01\x00"), 1),
        (constant_of(np.zeros(2, np.float32), 19, field=13, raw=b"\x80\xf8\x01\x00"), 0),
        # Masks are of infinities, and graphs compare with a NaN.
        (constant_of(np.array([0, -np.inf], np.float32)), 0),
        (constant_of(np.array(np.nan, np.float32)), 0),
        (constant_of(np.array([0x7FC00000, 1], np.int32), 3), 0),
    ],
)
def test_constants_of_the_graph_are_looked_through_for_nan(
    tmp_path: Path, constant: bytes, bad: int, in_function: bool
) -> None:
    model = make_model(tmp_path / "export")
    (model / "saved_model.pb").write_bytes(graph_with(constant, in_function=in_function))
    scan = scan_artifact(model)
    assert (scan.complete, scan.nonfinite) == (True, {"constant frozen": bad} if bad else {})


def test_a_graph_that_cannot_be_read_makes_the_scan_incomplete(tmp_path: Path) -> None:
    model = make_model(tmp_path / "export")
    whole = graph_with(constant_of(np.ones(9, np.float32)))
    for data in (whole[:-5], b"graph", b"\x7b\x7c" + whole):
        (model / "saved_model.pb").write_bytes(data)
        assert not scan_artifact(model).complete
