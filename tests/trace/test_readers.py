"""Every reader gives the numbers that were logged, and says a sentence about files that it cannot read."""

import json
from pathlib import Path

import numpy as np
import pytest

from lossguard.trace import npz
from lossguard.trace.read import read
from lossguard.trace.replay import replay
from lossguard.trace.trace import TraceError
from lossguard.wire.frame import Frames, Schema

GOLDEN = Path(__file__).parent / "golden" / "events.out.tfevents.golden"


def frames(n: int = 30) -> Frames:
    rng = np.random.default_rng(0)
    schema = Schema(("loss", "loss/click"), ("a/kernel", "b/kernel"), ("gradient_norm",))
    present = np.ones((n, 2), np.bool_)
    present[::4, 1] = False
    scalars = rng.random((n, 2))
    scalars[3, 0], scalars[4, 0] = np.nan, np.inf
    stats = rng.random((n, 2, 1)).astype(np.float32)
    return Frames.of(schema, np.arange(1, n + 1), scalars, stats, scalars_present=present)


def test_a_trace_that_is_written_is_read_again_as_it_was(tmp_path: Path) -> None:
    npz.write(tmp_path / "run.npz", frames(), {"name": "mine", "tasks": {"click": "binary"}})
    trace = read(tmp_path / "run.npz")
    (found,) = trace.attempts
    assert (trace.name, trace.tasks) == ("mine", {"click": "binary"})
    assert found.schema == frames().schema
    for name in ("steps", "scalars", "stats", "scalars_present", "stats_present"):
        np.testing.assert_array_equal(getattr(found, name), getattr(frames(), name))


def test_a_label_mean_in_the_meta_is_replayed_as_a_scalar(tmp_path: Path) -> None:
    tasks = [{"name": "click", "kind": "binary", "label_mean": 0.4}, {"name": "play", "kind": "regression"}]
    npz.write(tmp_path / "run.npz", frames(), {"tasks": tasks})
    trace = read(tmp_path / "run.npz")
    assert trace.attempts[0].schema.scalars == ("loss", "loss/click", "label_mean/click")
    assert trace.tasks == {"click": "binary", "play": "regression"}


def test_csv_cells_may_be_empty_and_nan_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("Step;train/loss;lr;note\n1;2.5;0.1;x\n2;nan;;y\n4;inf;0.05;z\n")
    (found,) = read(tmp_path / "log.csv").attempts
    assert found.schema.scalars == ("loss", "learning_rate")
    assert found.steps.tolist() == [1, 2, 4]
    np.testing.assert_array_equal(found.scalars, [[2.5, 0.1], [np.nan, np.nan], [np.inf, 0.05]])
    assert found.scalars_present.tolist() == [[True, True], [True, False], [True, True]]


def test_csv_without_steps_counts_its_rows(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("loss\n3\n2\n1\n")
    assert read(tmp_path / "log.csv").attempts[0].steps.tolist() == [1, 2, 3]


def test_steps_that_go_back_begin_another_attempt(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n1,3\n2,2\n3,9\n2,2\n3,1\n")
    trace = read(tmp_path / "log.csv")
    assert [part.steps.tolist() for part in trace.attempts] == [[1, 2, 3], [2, 3]]
    assert replay(trace).steps == (1, 3)


def test_trainer_state_is_read_with_its_bare_nan(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-30"
    folder.mkdir()
    history = [
        {"step": 10, "loss": 2.0, "learning_rate": 1e-3, "grad_norm": 1.5, "epoch": 0.1},
        {"step": 20, "loss": float("nan"), "learning_rate": 9e-4, "grad_norm": float("inf"), "epoch": 0.2},
        {"step": 20, "eval_loss": 1.9},
        {"step": 30, "loss": 1.5, "learning_rate": 8e-4, "grad_norm": 1.0, "epoch": 0.3},
    ]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history, "max_steps": 100}))
    trace = read(folder / "trainer_state.json")
    (found,) = trace.attempts
    assert trace.name == "checkpoint-30"
    assert {"loss", "learning_rate", "gradient_norm", "eval_loss"} <= set(found.schema.scalars)
    assert found.steps.tolist() == [10, 20, 30]
    assert np.isnan(found.scalars[1, found.schema.scalars.index("loss")])
    assert found.scalars_present[:, found.schema.scalars.index("eval_loss")].tolist() == [False, True, False]


def test_an_event_file_of_tensorflows_own_writer_is_read() -> None:
    (found,) = read(GOLDEN).attempts
    assert found.schema.scalars == ("loss", "learning_rate")
    assert found.steps.tolist() == list(range(1, 21))
    loss = found.scalars[:, 0]
    np.testing.assert_allclose(loss[:9], 2 / np.arange(1, 10), rtol=1e-7)
    assert np.isnan(loss[9])
    assert np.isposinf(loss[10])


def frames_or_sentence(path: Path) -> int:
    """How many frames could be read; a file without any has to be refused with a sentence that names it."""
    try:
        return len(read(path))
    except TraceError as error:
        if str(path) not in str(error):
            raise
        return 0


@pytest.mark.parametrize("cut", range(0, 2900, 97))
def test_a_torn_event_file_gives_what_was_whole_or_a_sentence(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "events.out.tfevents.torn"
    path.write_bytes(GOLDEN.read_bytes()[:cut])
    found = frames_or_sentence(path)
    assert found <= 20


def test_a_flipped_byte_in_an_event_file_never_crashes(tmp_path: Path) -> None:
    data = bytearray(GOLDEN.read_bytes())
    path = tmp_path / "events.out.tfevents.flipped"
    for at in range(0, len(data), 53):
        flipped = data.copy()
        flipped[at] ^= 0xFF
        path.write_bytes(flipped)
        frames_or_sentence(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run.npz", b"PK\x03\x04 torn", "not a NumPy archive"),
        ("run.npz", b"", "not a NumPy archive"),
        ("trainer_state.json", b"{}", "log_history"),
        ("trainer_state.json", b'{"log_history": [{"loss": 1}]}', "log_history"),
        ("log.csv", b"step,loss\n", "at least one row"),
        ("log.csv", b"step,accuracy\n1,0.5\n", "--scalar loss=COLUMN"),
        ("log.csv", b"\xff\xfe\x00", "not a text file"),
        ("events.out.tfevents.1", b"\xff" * 40, "not a TensorBoard event file"),
        ("picture.png", b"\x89PNG", "not a trace"),
    ],
)
def test_a_file_that_is_something_else_is_refused_with_a_sentence(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TraceError, match=words) as raised:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


def test_a_trace_without_its_arrays_names_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "run.npz", step=np.arange(3))
    with pytest.raises(TraceError, match="scalar_names, scalars"):
        read(tmp_path / "run.npz")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        read(tmp_path / "nothing.npz")
    with pytest.raises(TraceError, match="a folder"):
        read(tmp_path)


def test_a_scalar_can_be_named_by_hand(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,objective\n1,3\n2,2\n")
    assert read(tmp_path / "log.csv", {"loss": "objective"}).attempts[0].schema.scalars == ("loss",)
    with pytest.raises(TraceError, match="no column 'target'"):
        read(tmp_path / "log.csv", {"loss": "target"})


def test_a_scalar_can_be_named_by_hand_in_a_trace_that_has_one_of_that_name(tmp_path: Path) -> None:
    frames = Frames.of(Schema(("loss", "objective")), [1, 2], [[1.0, 5.0], [2.0, 6.0]])
    npz.write(tmp_path / "run.npz", frames)
    (found,) = read(tmp_path / "run.npz", {"loss": "objective"}).attempts
    assert found.schema.scalars == ("loss (as logged)", "loss")
    with pytest.raises(TraceError, match="no column 'nope'"):
        read(tmp_path / "run.npz", {"loss": "nope"})


def test_steps_that_go_back_in_a_trace_begin_another_attempt(tmp_path: Path) -> None:
    steps = np.array([1, 2, 3, 2, 3, 4])
    np.savez(tmp_path / "run.npz", step=steps, scalar_names=["loss"], scalars=np.arange(6.0)[:, None])
    trace = read(tmp_path / "run.npz")
    assert [frames.steps.tolist() for frames in trace.attempts] == [[1, 2, 3], [2, 3, 4]]
    assert trace.attempts[1].scalars[:, 0].tolist() == [3, 4, 5]


def test_an_archive_of_bare_arrays_is_a_curve(tmp_path: Path) -> None:
    np.savez(tmp_path / "run.npz", step=np.arange(3), loss=np.arange(3.0), lr=np.ones(3), other=np.zeros(7))
    (frames,) = read(tmp_path / "run.npz").attempts
    assert frames.schema.scalars == ("loss", "learning_rate")
    np.savez(tmp_path / "short.npz", step=np.arange(3), scalar_names=["loss"], scalars=np.ones((2, 1)))
    with pytest.raises(TraceError, match="3 steps, but 2 rows"):
        read(tmp_path / "short.npz")


def test_columns_are_known_by_their_usual_names_however_these_are_written(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("Step,Train Loss\n1,2\n2,3\n")
    assert read(path).attempts[0].schema.scalars == ("loss",)


@pytest.mark.parametrize("text", ["epoch,batch,loss\n0,0,5\n0,1,4\n1,0,3\n", "epoch,loss\n0.1,5\n0.2,4\n0.3,3\n"])
def test_rows_are_counted_where_batches_begin_anew_or_steps_are_fractions(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    (frames,) = read(path).attempts
    assert frames.steps.tolist() == [1, 2, 3]
    assert frames.scalars[:, frames.schema.scalars.index("loss")].tolist() == [5, 4, 3]
