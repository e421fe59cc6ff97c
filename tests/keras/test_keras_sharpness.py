"""The probe: against quadratics with a known spectrum, dense Hessians, Lanczos, and trainings at the edge itself."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from click_and_play import LOSSES, examples
from conftest import MemorySink, two_tasks
from lossguard.keras import Watch
from lossguard.keras.curvature import Curvature
from lossguard.keras.held import compiled_loss
from lossguard.keras.preconditioner import preconditioner
from lossguard.keras.sharpness import COST, RATIO, Sharpness

SPECTRUM = np.array([5.0, 3.0, 1.0, 0.5, 0.1, 0.0], np.float32)


def quadratic(spectrum: np.ndarray, seed: int = 0) -> tuple[keras.Variable, Callable[[], Any]]:
    """A weight and a loss 0.5 w H w whose H has these eigenvalues in random directions."""
    random = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(random.normal(size=(len(spectrum), len(spectrum))))
    hessian = tf.constant((turned * spectrum) @ turned.T, tf.float32)
    weight = keras.Variable(random.normal(size=len(spectrum)).astype("float32"), name="w")
    return weight, lambda: 0.5 * tf.tensordot(weight.value, tf.linalg.matvec(hessian, weight.value), 1)


def descend(optimizer: Any, weight: keras.Variable, loss: Callable[[], Any], steps: int) -> None:
    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            value = loss()
        optimizer.apply(tape.gradient(value, [weight.value]), [weight])

    for _ in range(steps):
        step()


def ratio_of(optimizer: Any, loss: Callable[[], Any], **options: Any) -> float:
    probe = Sharpness(loss=loss, every=1, **{"first_products": 200, "tolerance": 1e-6, **options})
    probe.check([optimizer], None)
    return probe.probe()[RATIO]


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda eta: keras.optimizers.SGD(eta), 2.0),
        (lambda eta: keras.optimizers.SGD(eta, momentum=0.9), 3.8),
        (lambda eta: keras.optimizers.SGD(eta, momentum=0.9, nesterov=True), 3.8 / 2.8),
    ],
)
def test_the_ratio_is_the_edge_at_which_training_itself_diverges(make: Any, limit: float) -> None:
    for ratio, grows in ((0.97, False), (1.03, True)):
        weight, loss = quadratic(SPECTRUM)
        optimizer = make(ratio * limit / 5.0)
        optimizer.build([weight])
        assert ratio_of(optimizer, loss) == pytest.approx(ratio, rel=1e-4)
        before = float(loss())
        descend(optimizer, weight, loss, 300)
        # Not larger: far beyond the edge it is NaN by now.
        assert (not float(loss()) <= before) is grows


def test_a_larger_negative_eigenvalue_does_not_hide_the_top_one() -> None:
    weight, loss = quadratic(np.array([-9.0, 2.0, 1.0, -0.5], np.float32))
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build([weight])
    assert ratio_of(optimizer, loss) == pytest.approx(2.0 * 0.5 / 2.0, rel=1e-3)


def test_a_loss_without_curvature_has_a_ratio_of_zero() -> None:
    weight = keras.Variable(np.ones(3, "float32"), name="w")
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build([weight])
    assert ratio_of(optimizer, lambda: tf.reduce_sum(weight.value)) == 0.0


OPTIMIZERS: dict[str, tuple[Callable[[], Any], Callable[[Any, int], np.ndarray], float]] = {
    "Adagrad": (
        lambda: keras.optimizers.Adagrad(0.1),
        lambda o, i: 1 / np.sqrt(o._accumulators[i].numpy() + 1e-7),
        2.0,
    ),
    "RMSprop": (
        lambda: keras.optimizers.RMSprop(0.01, centered=True, momentum=0.5),
        lambda o, i: 1 / np.sqrt(o._velocities[i].numpy() - o._average_gradients[i].numpy() ** 2 + 1e-7),
        3.0,
    ),
    "Adam": (
        lambda: keras.optimizers.Adam(0.01, amsgrad=True),
        lambda o, i: 1 / (np.sqrt(o._velocity_hats[i].numpy() / (1 - 0.999**8)) + 1e-7 / np.sqrt(1 - 0.999**8)),
        38.0,
    ),
}


def lanczos(product: Callable[[np.ndarray], np.ndarray], size: int, turns: int) -> float:
    """The top eigenvalue, by Lanczos with full reorthogonalisation in float64."""
    basis = [np.random.default_rng(5).normal(size=size)]
    basis[0] /= np.linalg.norm(basis[0])
    small = np.zeros((turns, turns))
    for turn in range(turns):
        moved = product(basis[turn])
        for row, vector in enumerate(basis):
            small[row, turn] = vector @ moved
        for vector in basis + basis:
            moved = moved - (vector @ moved) * vector
        basis.append(moved / np.linalg.norm(moved))
    return float(np.linalg.eigvalsh(np.triu(small) + np.triu(small, 1).T)[-1])


def gradient_at(variables: list[Any], gradients: Callable[[], Any], column: int, way: float) -> np.ndarray:
    """The flat gradient with one coordinate moved."""
    before = [variable.numpy() for variable in variables]
    flat = np.concatenate([value.ravel() for value in before])
    flat[column] += way
    for variable, part in zip(variables, np.split(flat, np.cumsum([v.size for v in before])[:-1]), strict=True):
        variable.assign(part.reshape(variable.shape))
    found = gradients()
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    return np.concatenate([np.ravel(one) for one in found]).astype("float64")


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_top_eigenvalue_of_a_model_is_that_of_its_dense_hessian_and_of_lanczos(name: str) -> None:
    make, diagonal, limit = OPTIMIZERS[name]
    inputs, labels = examples(32)
    model = two_tasks()
    model.compile(make(), loss=LOSSES)
    model.fit(inputs, labels, batch_size=4, verbose=0)
    optimizer = model.optimizer
    variables = optimizer._trainable_variables
    loss = compiled_loss(model, (inputs, labels))

    @tf.function(autograph=False)
    def gradients() -> list[Any]:
        with tf.GradientTape() as tape:
            value = loss()
        return [tf.convert_to_tensor(one) for one in tape.gradient(value, [v.value for v in variables])]

    # Column by column, by central differences of the plain gradient.
    sizes = [int(np.prod(variable.shape)) for variable in variables]
    hessian = np.zeros((sum(sizes), sum(sizes)))
    for column in range(sum(sizes)):
        ahead, behind = (gradient_at(variables, gradients, column, way) for way in (1e-3, -1e-3))
        hessian[:, column] = (ahead - behind) / 2e-3
    roots = np.sqrt(np.concatenate([diagonal(optimizer, i).ravel() for i in range(len(variables))]).astype("float64"))
    dense = float(np.linalg.eigvalsh(roots[:, None] * (hessian + hessian.T) / 2 * roots)[-1])

    curvature = Curvature(loss, variables, preconditioner(optimizer).diagonal)
    product = tf.function(curvature._product, autograph=False)
    cuts = np.cumsum(sizes)[:-1]

    def multiplied(vector: np.ndarray) -> np.ndarray:
        parts = zip(np.split(vector.astype("float32"), cuts), variables, strict=True)
        found = product([part.reshape(variable.shape) for part, variable in parts])
        return np.concatenate([np.ravel(part) for part in found]).astype("float64")

    assert lanczos(multiplied, len(roots), 30) == pytest.approx(dense, rel=1e-3)
    probe = Sharpness((inputs, labels), every=1, first_products=300, tolerance=1e-6)
    probe.check([optimizer], model)
    eta = float(optimizer.learning_rate.numpy())
    assert probe.probe()[RATIO] == pytest.approx(eta * dense / limit, rel=1e-3)


def test_a_warm_start_needs_a_few_products() -> None:
    inputs, labels = examples(64)
    model = two_tasks()
    model.compile(keras.optimizers.Adagrad(0.05), loss=LOSSES)
    probe = Sharpness((inputs, labels), every=1, products=2, first_products=100, tolerance=0.0)
    model.fit(inputs, labels, batch_size=8, verbose=0)
    probe.check([model.optimizer], model)
    probe.probe()
    model.fit(inputs, labels, batch_size=8, verbose=0)
    warm = probe.probe()[RATIO]
    cold = Sharpness((inputs, labels), every=1, first_products=300, tolerance=0.0)
    cold.check([model.optimizer], model)
    assert warm == pytest.approx(cold.probe()[RATIO], rel=1e-2)


def test_a_probe_takes_so_many_products_at_most_and_its_cost_is_in_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    # With a clock of its own: a compilation takes 1000, a gradient 2, a product 5.
    now = [0.0]
    quotients: list[float] = []
    shifts: list[float] = []

    class Counted:
        made = 0

        def turn(self, vectors: list[Any], shift: Any) -> tuple[list[Any], Any]:
            now[0] += 5.0 if self.made else 1000.0
            shifts.append(float(shift))
            self.made += 1
            return vectors, quotients.pop(0) if quotients else float(self.made)

        def gradient_norm(self) -> Any:
            now[0] += 2.0
            return 1.0

    counted = Counted()
    monkeypatch.setattr("lossguard.keras.sharpness.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(Sharpness, "_curvature", lambda *given: counted)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([keras.Variable(np.ones(2, "float32"))])
    probe = Sharpness(loss=lambda: tf.zeros([]), every=1, products=4, first_products=30, tolerance=1e-2)
    probe.check([optimizer], None)
    assert probe.probe()[COST] == 30 * 5 / 2
    assert probe.probe()[COST] == 4 * 5 / 2
    quotients += [7.0, 9.0, 9.05, 100.0]
    found = probe.probe()
    assert found[COST] == 3 * 5 / 2, "the third product changed it by less than a hundredth"
    assert found[RATIO] == pytest.approx(0.1 * 9.05 / 2)
    # What a negative eigenvalue was shifted by is half as much in each later probe, and is soon forgotten.
    quotients[:] = [-8.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    shifts.clear()
    for _ in range(3):
        probe.probe()
    assert shifts == [0.0, 8.0, 8.0, 4.0, 4.0, 2.0, 2.0]


def test_excluded_layers_are_no_coordinates() -> None:
    first, second = (keras.Variable(np.ones(1, "float32"), name=name) for name in ("first", "second"))
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build([first, second])
    loss = lambda: tf.reduce_sum(2.0 * first.value**2 + 5.0 * second.value**2)  # noqa: E731
    for exclude, top in (((), 10.0), (("second",), 4.0)):
        assert ratio_of(optimizer, loss, exclude=exclude) == pytest.approx(top / 2, rel=1e-4)


def test_the_largest_second_moment_so_far_is_what_amsgrad_divides_by() -> None:
    weight = keras.Variable(np.ones(2, "float32"))
    optimizer = keras.optimizers.Adam(0.1, amsgrad=True, epsilon=0.0)
    optimizer.build([weight])
    optimizer.iterations.assign(5)
    optimizer._velocities[0].assign([1.0, 4.0])
    optimizer._velocity_hats[0].assign([9.0, 16.0])
    diagonal = preconditioner(optimizer).diagonal
    assert diagonal is not None
    np.testing.assert_allclose(diagonal(weight), np.sqrt(1 - 0.999**5) / np.array([3.0, 4.0]), rtol=1e-4)


def test_the_held_loss_is_that_of_inference() -> None:
    inputs, labels = np.ones((8, 4), "float32"), np.zeros((8, 1), "float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    assert float(compiled_loss(model, (inputs, labels))()) == pytest.approx(model.evaluate(inputs, labels, verbose=0))


def test_probing_changes_no_bit_of_the_training_and_none_of_its_metrics() -> None:
    inputs, labels = examples(48)
    ended = []
    for probed in (False, True):
        model = two_tasks()
        model.compile(keras.optimizers.Adam(0.01), loss=LOSSES)
        probe = Sharpness((inputs, labels), every=1, products=2, first_products=3)
        history: list[Any] = [model.train_on_batch(inputs, labels)]
        for _ in range(3):
            if probed:
                probe.check([model.optimizer], model)
                assert set(probe.probe()) == {RATIO, COST}
            # As a callback between two executions would find it: in the middle of an epoch's averages.
            history.append([model.train_on_batch(inputs, labels, return_dict=True)["loss"], tf.random.uniform([])])
        ended.append((history, [value.numpy() for value in (*model.variables, *model.optimizer.variables)]))
    (bare, bare_values), (seen, seen_values) = ended
    assert bare == seen
    assert all(np.array_equal(one, other) for one, other in zip(bare_values, seen_values, strict=True))


def test_what_cannot_be_probed_is_refused_by_name() -> None:
    inputs, labels = examples(4)
    with pytest.raises(ValueError, match="batch: give either"):
        Sharpness()
    with pytest.raises(ValueError, match="batch: must be"):
        Sharpness(inputs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every: must be"):
        Sharpness((inputs, labels), every=0)
    with pytest.raises(ValueError, match="tolerance"):
        Sharpness((inputs, labels), tolerance=1.0)
    with pytest.raises(ValueError, match="tolerance: must be at least 0 and below 1, got '1 %'"):
        Sharpness((inputs, labels), tolerance="1 %")  # type: ignore[arg-type]
    probe = Sharpness((inputs, labels))
    with pytest.raises(ValueError, match="Lion is not known; known are SGD, Adagrad"):
        probe.check([keras.optimizers.Lion(0.1)], two_tasks())
    with pytest.raises(ValueError, match="one optimizer, this training has 2"):
        probe.check([keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)], two_tasks())
    with pytest.raises(ValueError, match="loss= in the place of a batch"):
        probe.check([keras.optimizers.SGD(0.1)], None)

    class OwnAdam(keras.optimizers.Adam):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            self.assign_sub(variable, learning_rate * gradient)

    with pytest.raises(ValueError, match="OwnAdam is not known"):
        preconditioner(OwnAdam())
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        spread = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="on one device; this one is replicated"):
        probe.check([keras.optimizers.SGD(0.1)], spread)
    half = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype="mixed_bfloat16")])
    with pytest.raises(ValueError, match="computes in float32; this one does in bfloat16"):
        probe.check([keras.optimizers.SGD(0.1)], half)


def test_an_error_in_the_probe_ends_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def loss() -> Any:
        calls.append(1)
        raise RuntimeError("no memory")

    monkeypatch.setattr("lossguard.guard.swallow", lambda entry, error: None)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([keras.Variable(np.ones(2, "float32"))])
    probe = Sharpness(loss=loss, every=1)
    probe.check([optimizer], None)
    assert probe.due(1)
    assert probe.probe() == {}
    assert not probe.due(1)
    assert len(calls) == 1


def test_weights_that_are_not_finite_give_nan_and_the_next_probe_begins_anew() -> None:
    weight, loss = quadratic(SPECTRUM)
    cubic = lambda: loss() + 0.0 * tf.reduce_sum(weight.value**3)  # noqa: E731
    optimizer = keras.optimizers.SGD(0.2)
    optimizer.build([weight])
    probe = Sharpness(loss=cubic, every=1, first_products=100, tolerance=1e-6)
    probe.check([optimizer], None)
    good = weight.numpy()
    weight.assign(np.full_like(good, np.nan))
    assert np.isnan(probe.probe()[RATIO])
    weight.assign(good)
    assert probe.probe()[RATIO] == pytest.approx(0.2 * 5.0 / 2.0, rel=1e-3)


def test_the_ratio_stands_in_the_frames_of_its_steps(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    inputs, labels = examples(40)
    mine = watch(sharpness=Sharpness((inputs, labels), every=4, products=2, first_products=5))
    model = two_tasks()
    model.compile(mine.wrap(keras.optimizers.Adagrad(0.1)), loss=LOSSES, steps_per_execution=2)
    model.fit(inputs, labels, batch_size=4, verbose=0, callbacks=[mine])
    (sink,) = sinks
    assert sink.steps == list(range(1, 11))
    assert np.flatnonzero(sink.present(RATIO)).tolist() == [3, 7]
    assert (sink.scalar(RATIO)[sink.present(RATIO)] > 0).all()
    assert (sink.scalar(COST)[sink.present(COST)] > 0).all()
    with pytest.raises(ValueError, match="sharpness: must be a Sharpness"):
        watch(sharpness=1000)
    other = watch(sharpness=Sharpness((inputs, labels)))
    model = two_tasks()
    model.compile(keras.optimizers.Lion(0.1), loss=LOSSES)
    with pytest.raises(ValueError, match="Lion is not known"):
        other.attach(model)


def test_a_loop_of_ones_own_gives_the_loss(watch: Callable[..., Watch], sinks: list[MemorySink]) -> None:
    weight, loss = quadratic(SPECTRUM)
    optimizer = keras.optimizers.SGD(0.1)
    mine = watch(sharpness=Sharpness(loss=loss, every=3, first_products=200, tolerance=1e-6))
    mine.wrap(optimizer)
    with mine:
        for _ in range(5):
            descend(optimizer, weight, loss, 1)
            mine.after_step()
    assert np.flatnonzero(sinks[0].present(RATIO)).tolist() == [2]
    assert sinks[0].scalar(RATIO)[2] == pytest.approx(0.1 * 5.0 / 2.0, rel=1e-3)
