"""One training: the same numbers whatever ran before, and what is recorded of it."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from lab.config import Config
from lab.data import LabData, Source, read
from lab.train import Trainer

pytestmark = pytest.mark.tensorflow
RUN = Config(bottom="small", steps=12, batch=64, evaluations=2, treatment="clippy")


@pytest.fixture(scope="module")
def data() -> LabData:
    return read(Source(days=3, rows_per_day=400))


@pytest.fixture(scope="module")
def trainer(data: LabData) -> Trainer:
    return Trainer(RUN, data)


def test_a_run_is_the_same_to_the_bit_after_other_runs_and_on_a_step_compiled_anew(
    data: LabData, trainer: Trainer
) -> None:
    one = trainer.run(RUN)
    other = trainer.run(RUN.but(seed=1, learning_rate=0.3))
    again = trainer.run(RUN)
    anew = Trainer(RUN, data).run(RUN)
    assert other.digest != one.digest
    for same in (again, anew):
        assert same.digest == one.digest
        assert same.final == one.final
        np.testing.assert_array_equal(same.frames.scalars, one.frames.scalars)
        np.testing.assert_array_equal(same.frames.stats, one.frames.stats)


def test_the_order_of_the_batches_and_the_weights_have_seeds_of_their_own(trainer: Trainer) -> None:
    digests = {trainer.run(RUN.but(seed=s, batch_seed=b)).digest for s, b in ((0, 0), (0, 1), (1, 0))}
    assert len(digests) == 3
    assert trainer.run(RUN.but(batch_seed=0)).digest in digests


def test_every_step_is_a_frame_with_its_rate_and_its_tasks(trainer: Trainer) -> None:
    run = trainer.run(RUN.but(warm_up=4, decay_to=0.5))
    names = run.frames.schema.scalars
    rates = run.frames.scalars[:, names.index("learning_rate")]
    assert len(run.frames) == RUN.steps
    assert rates[0] < rates[3]
    assert rates[-1] == pytest.approx(0.5 * RUN.learning_rate)
    assert {"loss", "loss/click", "batch_auc/click", "rmse/play_time"} <= set(names)
    assert "embedding/table" not in run.frames.schema.layers
    assert [point[0] for point in run.curve] == [6, 12]


def test_a_config_of_another_step_is_refused(trainer: Trainer) -> None:
    with pytest.raises(ValueError, match="needs a step of its own"):
        trainer.run(RUN.but(bottom="large"))


def test_the_judged_day_is_never_trained_on(data: LabData) -> None:
    from lab import order

    for judged in (0, 1):
        examples = data.until(data.examples.last_day - judged).examples
        for kind in ("window", "sequential", "dated", "shuffled"):
            rows = order.rows(RUN.but(order=kind, batch=16), examples)
            assert rows.shape == (RUN.steps, 16)
            assert rows.max() < examples.training
            assert set(examples.day[rows.ravel()]) <= set(range(examples.last_day))


def test_a_strictly_sequential_pass_fits_into_the_rows_of_the_generated_stream_too(tmp_path: Path) -> None:
    from lab import order
    from lab.lab import Lab

    source = Source(days=3, rows_per_day=400)
    examples = read(source).examples
    steps = Lab(source, tmp_path).steps(64, 410)
    assert steps == examples.training // 64
    order.rows(RUN.but(order="sequential", steps=steps), examples)
    with pytest.raises(ValueError, match="are more than the"):
        order.rows(RUN.but(order="sequential", steps=steps + 1), examples)
