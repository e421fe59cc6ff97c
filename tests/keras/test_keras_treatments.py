"""Laws of every treatment, and the worked numbers of their sources."""

import itertools
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from lossguard.keras import (
    LAMB,
    AdaptiveGradientClipping,
    Clippy,
    GradientClipping,
    PolyakCap,
    SkipNonFinite,
    Watch,
)
from lossguard.keras.optimizer import Hook
from lossguard.keras.ring import frames_of
from lossguard.keras.treatments.base import Proposal, StepTreatment
from lossguard.wire.stats import STAT_NAMES

# Each with a twin so loose that it never acts.
BOUNDED = {
    "Clippy": (Clippy(), Clippy(lambda_abs=1e30)),
    "GradientClipping": (GradientClipping(), GradientClipping(threshold=1e30)),
    "AGC by layer": (AdaptiveGradientClipping(), AdaptiveGradientClipping(threshold=1e30)),
    "AGC by unit": (AdaptiveGradientClipping(norms="unit"), AdaptiveGradientClipping(threshold=1e30, norms="unit")),
    "Polyak": (PolyakCap(), PolyakCap(loss_floor=-1e30)),
}
ALL: dict[str, Any] = {name: pair[0] for name, pair in BOUNDED.items()} | {"LAMB": LAMB(), "skip": SkipNonFinite()}


def factor(treatment: Any, weight: Any, gradient: Any, update: Any, rate: float = 0.1) -> np.ndarray:
    proposal = proposed(weight, gradient, update, rate)
    if isinstance(treatment, StepTreatment):
        return np.asarray(treatment.step_factors([proposal], tf.constant(1.0))[0], "float64")
    return np.asarray(treatment.factor(proposal), "float64")


def proposed(weight: Any, gradient: Any, update: Any, rate: float = 0.1) -> Proposal:
    tensors = (tf.constant(value, tf.float32) for value in (weight, gradient, update))
    return Proposal(*tensors, tf.constant(rate))


def drawn(shape: tuple[int, ...], scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype("float32")


@pytest.mark.parametrize("name", BOUNDED)
def test_a_bounded_factor_lies_between_0_and_1_and_falls_as_the_gradient_grows(name: str) -> None:
    treatment, loose = BOUNDED[name]
    for shape in ((5, 4), (4,), (2, 3, 4), (2, 2, 3, 4)):
        weight, gradient = drawn(shape), drawn(shape, seed=1)
        before = np.inf
        for scale in (1e-6, 1e-2, 1.0, 1e2, 1e6):
            sigma = factor(treatment, weight, gradient * scale, gradient * scale)
            assert np.all((sigma > 0) & (sigma <= 1))
            assert np.all(sigma <= before + 1e-12)
            before = sigma
        assert np.all(before < 1e-3)
        assert np.all(factor(loose, weight, gradient, gradient) == 1.0)


@pytest.mark.parametrize("name", ALL)
def test_a_zero_gradient_and_zero_weights_freeze_nothing(name: str) -> None:
    zero, some = np.zeros((3, 2)), drawn((3, 2), 1e-3)
    still = factor(ALL[name], drawn((3, 2)), zero, zero)
    assert np.all(np.isfinite(still))
    assert still == pytest.approx(LAMB().mu if name == "LAMB" else 1.0)
    assert np.all(factor(ALL[name], zero, some, some) > 0)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_nan_shows_in_the_factor(name: str) -> None:
    broken = drawn((3, 2))
    broken[1, 1] = np.nan
    assert np.isnan(factor(BOUNDED[name][0], drawn((3, 2)), broken, broken)).any()


@pytest.mark.parametrize("name", [name for name in ALL if name != "skip"])
def test_an_infinite_gradient_stops_its_layer_as_far_as_a_factor_can(name: str) -> None:
    broken = drawn((3, 2))
    broken[1, 1] = np.inf
    sigma = np.broadcast_to(factor(ALL[name], drawn((3, 2), seed=1), broken, broken), (3, 2))
    assert np.all(sigma[:, 1] == 0.0)
    # By unit the other one moves; of the stopped one 0 * Inf is NaN, which only `SkipNonFinite` prevents.
    assert np.all((sigma[:, 0] > 0) if name == "AGC by unit" else (sigma[:, 0] == 0))


def test_clippy_gives_the_published_reference_numbers() -> None:
    # Its test vector: x = [1, 2], g = [10, 10], eta 0.2, accumulator 0.01, relative 0.4, absolute 0.1, and 0.01 on the
    # accumulator, which Algorithm 1 does not have: r = g / 0.1 = 100, u = 20; without that term (0.4 + 0.1) / 20.
    assert factor(Clippy(lambda_rel=0.4, lambda_abs=0.1), [1, 2], [10, 10], [20, 20]) == pytest.approx(0.025)
    # Algorithm 1 by hand: allowances 0.51 and 0.01, updates 0.1 and 0.02.
    assert factor(Clippy(), [1, 0], [1, 1], [0.1, 0.02]) == pytest.approx(0.5)
    # With no absolute allowance, a zero weight that would move stops its layer; one that would not, does not.
    assert factor(Clippy(lambda_abs=0.0), [1, 0], [1, 1], [0.1, 0.1]) == 0.0
    assert factor(Clippy(lambda_abs=0.0), [1, 0], [1, 0], [0.1, 0.0]) == 1.0


def test_adaptive_clipping_by_unit_gives_the_numbers_of_nfnets() -> None:
    weight, gradient = np.array([[3.0, 0.0], [4.0, 0.0]]), np.array([[0.0, 3.0], [1.0, 4.0]])
    by_unit = AdaptiveGradientClipping(threshold=0.01, norms="unit")
    # Columns: ‖w‖ = 5 and 0 (floored at 1e-3), ‖g‖ = 1 and 5.
    assert factor(by_unit, weight, gradient, gradient)[0] == pytest.approx([0.05, 0.01 * 1e-3 / 5])
    by_layer = AdaptiveGradientClipping(threshold=0.01, epsilon=0.0)
    assert factor(by_layer, weight, gradient, gradient) == pytest.approx(0.01 * 5 / np.sqrt(26))


@pytest.mark.parametrize(("shape", "axes"), [((3, 4, 5), (0,)), ((2, 3, 4, 5), (0, 1, 2)), ((2, 2, 2, 2, 3), None)])
def test_the_units_of_kernels_of_convolutions_are_those_of_nfnets(shape: tuple[int, ...], axes: Any) -> None:
    weight, gradient = drawn(shape), drawn(shape, seed=1)
    sizes = [
        np.sqrt(np.sum(one.astype("float64") ** 2, axis=axes, keepdims=axes is not None)) for one in (weight, gradient)
    ]
    sigma = factor(AdaptiveGradientClipping(threshold=0.9, norms="unit"), weight, gradient, gradient)
    assert sigma.shape == sizes[0].shape
    np.testing.assert_allclose(sigma, np.minimum(1, 0.9 * sizes[0] / sizes[1]), rtol=1e-5)


def test_the_papers_own_formula_stops_a_layer_of_zeros_and_leaves_one_that_does_not_move() -> None:
    zero = np.zeros((3, 2))
    for norms in ("layer", "unit"):
        strict = AdaptiveGradientClipping(epsilon=0.0, norms=norms)
        assert np.all(factor(strict, zero, drawn((3, 2)), zero) == 0.0)
        assert np.all(factor(strict, zero, zero, zero) == 1.0)


def test_lamb_makes_the_update_mu_eta_times_the_weight() -> None:
    weight, update = drawn((4, 3)), drawn((4, 3), seed=1)
    sigma = factor(LAMB(mu=0.01), weight, update, update, rate=0.5)
    assert np.linalg.norm(sigma * update) == pytest.approx(0.01 * 0.5 * np.linalg.norm(weight), rel=1e-5)


def capped(promises: list[float], loss: float, **settings: Any) -> list[float]:
    """PolyakCap's factors of layers with one weight and a gradient of 1, whose update is what they promise."""
    layers = [proposed([1.0], [1.0], [promise]) for promise in promises]
    return [float(one) for one in PolyakCap(**settings).step_factors(layers, tf.constant(loss))]


def test_the_cap_cuts_as_clippy_does_and_the_rest_by_one_factor_where_a_step_promises_more_than_the_loss() -> None:
    # Clippy lets a weight of 1 move by 0.51: of promises of 10, 1 and 2 it leaves 0.51 each, 1.53 in all.
    clippy = [0.051, 0.51, 0.255]
    assert capped([10, 1, 2], 5) == pytest.approx(clippy)
    assert capped([10, 1, 2], 0.5) == pytest.approx([one * 0.5 / 1.53 for one in clippy])
    assert capped([10, 1, 2], 5, loss_floor=4.5) == capped([10, 1, 2], 0.5)
    # What promises an ascent, as momentum may, earns nobody anything.
    assert capped([-100, 10], 0.255) == pytest.approx([0.0051 / 2, 0.051 / 2])
    for promises, loss in (([3, 1, 1], 5.0), ([0.1, 0.7, 0.2], 1.0)):
        assert capped(promises, loss) == [1.0] * 3
    draw = np.random.default_rng(0)
    for _ in range(50):
        promises = draw.lognormal(sigma=3, size=7)
        room = promises.sum() * draw.uniform(0.01, 1.2)
        kept = promises * capped(list(promises), room)
        allowed = np.minimum(promises, 0.51) if room < promises.sum() else promises
        assert kept == pytest.approx(allowed * min(1, room / allowed.sum()), rel=1e-4)


def test_the_cap_is_the_polyak_step_on_a_quadratic_and_stops_an_infinite_promise() -> None:
    # L = h w^2 / 2 with h 8 and w 3: g = 24, and for the whole way to the minimum, u = 3, it is half of it.
    assert factor_at_loss(36.0, [3.0], [24.0], [3.0]) == pytest.approx(0.5)
    assert capped([np.inf, 1], 5) == pytest.approx([0, 0.51])
    assert capped([2, 1], -1.0) == capped([2, 1], 0.0) == [1, 1]


def factor_at_loss(loss: float, *layer: Any) -> float:
    return float(PolyakCap().step_factors([proposed(*layer)], tf.constant(loss))[0])


def test_with_the_cap_no_learning_rate_takes_a_convex_training_further_from_its_minimum() -> None:
    # Polyak's theorem, on least squares that can be solved exactly, at 100 times the largest stable learning rate.
    rows, truth = drawn((12, 5)), drawn((5, 1), seed=1)
    rate = float(100 * 2 / np.linalg.eigvalsh(rows.T @ rows).max())

    def distances(treatments: Any) -> list[float]:
        optimizer, weight = keras.optimizers.SGD(rate), keras.Variable(np.zeros((5, 1), "float32"))
        seen: dict[str, Any] = {}
        Hook(optimizer, treatments, lambda eta: {"loss": seen["loss"]}, rows=16, full_every=4)
        optimizer.build([weight])
        found = []
        for _ in range(12):
            with tf.GradientTape() as tape:
                seen["loss"] = tf.reduce_sum((rows @ (weight.value - truth)) ** 2) / 2
            optimizer.apply([tape.gradient(seen["loss"], weight.value)], [weight])
            found.append(float(np.linalg.norm(weight.numpy().astype("float64") - truth)))
        return found

    treated = [float(np.linalg.norm(truth)), *distances((PolyakCap(),))]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(treated))
    assert treated[-1] < 0.5 * treated[0]
    assert distances(())[-1] > 1e20


def test_a_treatment_of_the_whole_step_sees_what_the_ones_before_it_left() -> None:
    gradients = [tf.constant(drawn((4, 3), 10.0))]
    bare, _, _ = run((), gradients, lambda: keras.optimizers.SGD(0.1))
    alone, _, _ = run((PolyakCap(),), gradients, lambda: keras.optimizers.SGD(0.1))
    half, _, _ = run((GradientClipping(0.1), PolyakCap()), gradients, lambda: keras.optimizers.SGD(0.1))
    start, squares = drawn((4, 3)), float(np.sum(np.square(gradients[0])))
    np.testing.assert_allclose(start - alone, (start - bare) / (0.1 * squares), rtol=1e-3, atol=1e-6)
    # Clipped, the step promises 0.1 * 0.1 * ‖g‖, which is below the loss of 1.
    np.testing.assert_allclose(start - half, (start - bare) * 0.1 / np.sqrt(squares), rtol=1e-3, atol=1e-6)


def test_a_treatment_of_the_whole_step_needs_the_loss_and_one_optimizer(tmp_path: Path) -> None:
    optimizer, variable = keras.optimizers.SGD(0.1), keras.Variable([1.0])
    watch = Watch("ads", "ranker", treatment=PolyakCap(), journal=tmp_path)
    watch.wrap(optimizer)
    optimizer.build([variable])
    with pytest.raises(ValueError, match=r"PolyakCap needs the loss of the step.*watch\.observe"):
        optimizer.apply([tf.constant([1.0])], [variable])
    both = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1), {".*head.*": keras.optimizers.Adam(0.01)})
    with pytest.raises(ValueError, match="PolyakCap looks at the whole step"):
        Watch("ads", "ranker", treatment=PolyakCap(), journal=tmp_path).wrap(keras.optimizers.MultiOptimizer(both))


def run(treatments: Any, gradients: list[Any], make: Any = None, *, jit: bool = False) -> tuple[Any, Any, Any]:
    """Weights, slots and frames after one update per gradient; one layer `dense/kernel`, [4, 3]."""
    optimizer = make() if make else keras.optimizers.Adam(0.1)
    variable = keras.Variable(drawn((4, 3)), name="kernel")
    hook = Hook(optimizer, treatments, lambda eta: {"loss": 1.0, "learning_rate": eta}, rows=16, full_every=4)
    optimizer.build([variable])
    step = tf.function(lambda given: optimizer.apply([given], [variable]), jit_compile=jit)
    for gradient in gradients:
        step(gradient)
    assert hook.ring is not None
    frames = frames_of(hook.ring.layout, 1, hook.ring.snapshot(1, len(gradients)).numpy(), np.zeros(len(gradients)))
    slots = [slot.numpy() for slot in optimizer.variables if "iteration" not in slot.path]
    return variable.numpy(), slots, frames


def test_a_factor_of_1_is_bit_identical_to_no_treatment() -> None:
    gradients = [tf.constant(drawn((4, 3), seed=number)) for number in range(4)]
    for make in (lambda: keras.optimizers.Adam(0.1), lambda: keras.optimizers.Ftrl(0.1)):
        bare, bare_slots, _ = run((), gradients, make)
        treated, slots, _ = run((*(loose for _, loose in BOUNDED.values()), SkipNonFinite()), gradients, make)
        assert np.array_equal(bare, treated)
        assert all(np.array_equal(one, other) for one, other in zip(bare_slots, slots, strict=True))


def test_factors_multiply_and_the_slots_see_the_original_gradient() -> None:
    gradients = [tf.constant(drawn((4, 3), 10.0))]
    bare, bare_slots, _ = run((), gradients)
    both, slots, frames = run((GradientClipping(0.5), AdaptiveGradientClipping(0.5)), gradients)
    start, gradient = drawn((4, 3)), np.linalg.norm(gradients[0])
    expected = (0.5 / gradient) * (0.5 * np.linalg.norm(start) / gradient)
    np.testing.assert_allclose(start - both, expected * (start - bare), rtol=1e-3, atol=1e-7)
    assert all(np.array_equal(one, other) for one, other in zip(bare_slots, slots, strict=True))
    assert frames.stats[0, 0, frames.schema.stats.index("clipping_factor")] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_skipping_keeps_weights_and_slots_and_leaves_a_record(jit: bool) -> None:
    good = [tf.constant(drawn((4, 3), seed=number)) for number in range(2)]
    bad = drawn((4, 3))
    bad[0, 0], bad[2, 1] = np.inf, np.nan
    alone, alone_slots, _ = run((SkipNonFinite(), Clippy()), good, keras.optimizers.Adagrad, jit=jit)
    given = [good[0], tf.constant(bad), good[1]]
    weights, slots, frames = run((SkipNonFinite(), Clippy()), given, keras.optimizers.Adagrad, jit=jit)
    assert np.array_equal(alone, weights)
    assert all(np.array_equal(one, other) for one, other in zip(alone_slots, slots, strict=True))
    names = frames.schema.stats
    assert frames.stats[1, 0, names.index("nonfinite_count")] == 2
    assert frames.stats[1, 0, names.index("update_norm")] == 0
    assert not np.isfinite(frames.stats[1, 0, names.index("gradient_norm")])
    assert all(frames.stats_present[1, names.index(name)] for name in STAT_NAMES)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_row_of_a_sparse_gradient_skips_the_step_of_all_layers(bad: float) -> None:
    optimizer = keras.optimizers.Adagrad(0.1)
    hook = Hook(
        optimizer, (SkipNonFinite(), Clippy(exclude=())), lambda eta: {"learning_rate": eta}, rows=16, full_every=4
    )
    table, kernel = keras.Variable(drawn((4, 2)), name="embeddings"), keras.Variable(drawn((3,)), name="kernel")
    optimizer.build([table, kernel])
    seen = []
    for value in (1.0, bad):
        rows = tf.constant([[1.0, 1.0], [value, 1.0], [1.0, 1.0]])
        optimizer.apply(
            [tf.IndexedSlices(rows, tf.constant([1, 3, 1]), tf.constant([4, 2])), tf.ones(3)], [table, kernel]
        )
        seen.append([one.numpy() for one in (table, kernel, *optimizer._accumulators)])
    assert all(np.array_equal(one, other) for one, other in zip(*seen, strict=True))
    assert int(optimizer.iterations) == 2
    assert hook.ring is not None
    frames = frames_of(hook.ring.layout, 1, hook.ring.snapshot(1, 2).numpy(), np.zeros(2))
    assert frames.stats[1, :, frames.schema.stats.index("nonfinite_count")].tolist() == [1, 0]
    assert frames.stats[1, :, frames.schema.stats.index("update_norm")].tolist() == [0, 0]


def test_a_nonfinite_step_is_measured_in_full_and_a_jump_begins_a_full_stretch() -> None:
    given = [tf.constant(drawn((4, 3), 10.0 if number == 6 else 1.0)) for number in range(12)]
    _, _, frames = run((), given)
    full = frames.stats_present[:, frames.schema.stats.index("clippy_ratio")]
    assert list(full) == [True, False, False, False, True, False] + [True] * 6
    assert frames.stats_present[:, frames.schema.stats.index("gradient_norm")].all()
    assert np.isnan(frames.stats[1, 0, frames.schema.stats.index("clippy_ratio")])


def test_norms_beyond_the_squares_of_float32_are_measured() -> None:
    for scale in (1e25, 1e-30):
        gradient = drawn((4, 3), scale)
        _, _, frames = run((), [tf.constant(gradient)], lambda: keras.optimizers.SGD(0.1))
        row = dict(zip(frames.schema.stats, frames.stats[0, 0], strict=True))
        assert row["gradient_norm"] == pytest.approx(np.linalg.norm(gradient.astype("float64")), rel=1e-5)
        assert row["update_norm"] == pytest.approx(0.1 * np.linalg.norm(gradient.astype("float64")), rel=1e-5)
        assert row["nonfinite_count"] == 0


def test_an_excluded_layer_is_left_alone() -> None:
    assert not Clippy().applies_to("ranker/embedding/embeddings")
    assert not Clippy().applies_to("user_embedding/projection/kernel")
    assert Clippy().applies_to("shared/kernel")
    assert SkipNonFinite().applies_to("ranker/embedding/embeddings")
    given = [tf.constant(drawn((4, 3), 100.0))]
    bare, _, _ = run((), given)
    excluded, _, frames = run((Clippy(exclude=("kernel",)),), given)
    assert np.array_equal(bare, excluded)
    assert frames.stats[0, 0, frames.schema.stats.index("clipping_factor")] == 1.0


@pytest.mark.parametrize("jit", [False, True])
def test_a_sparse_gradient_is_measured_as_the_dense_one_it_stands_for(jit: bool) -> None:
    # Row 2 three times and row 0 once; SGD adds them up, so the dense gradient is the truth.
    values, indices = drawn((4, 3)), [2, 0, 2, 2]
    dense = np.zeros((4, 3), "float32")
    np.add.at(dense, indices, values)
    slices = tf.IndexedSlices(tf.constant(values), tf.constant(indices), tf.constant([4, 3]))
    for treatment in ((), (Clippy(lambda_rel=0.01),)):
        one, _, sparse = run(treatment, [slices], lambda: keras.optimizers.SGD(0.1), jit=jit)
        other, _, full = run(treatment, [tf.constant(dense)], lambda: keras.optimizers.SGD(0.1), jit=jit)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(sparse.stats, full.stats, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Clippy(lambda_rel=-1.0), "lambda_rel"),
        (lambda: Clippy(lambda_rel=0.0, lambda_abs=0.0), "lambda_rel, lambda_abs"),
        (lambda: Clippy(exclude="embedding"), "exclude: must be a sequence"),
        (lambda: Clippy(exclude=("(",)), "exclude: .* is not a regular expression"),
        (lambda: Clippy(exclude=None), r"exclude: must be a sequence of patterns, got None; \(\) is none"),
        (lambda: Clippy(exclude=(b"embedding",)), "exclude: .* it must be text"),
        (lambda: Clippy(lambda_rel="0.5"), "lambda_rel: must be a finite number of at least 0, got '0.5'"),
        (lambda: Clippy(lambda_abs=True), "lambda_abs"),
        (lambda: AdaptiveGradientClipping(epsilon=-1e-3), "epsilon"),
        (lambda: GradientClipping(float("inf")), "threshold"),
        (lambda: PolyakCap(loss_floor=True), "loss_floor"),
        (lambda: GradientClipping(0.0), "threshold"),
        (lambda: AdaptiveGradientClipping(norms="row"), "norms"),
        (lambda: LAMB(float("nan")), "mu"),
        (lambda: PolyakCap(loss_floor=float("inf")), "loss_floor"),
    ],
)
def test_wrong_settings_raise_with_their_name(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (lambda: Clippy(np.float32(0.5), np.float64(0.25)), Clippy(0.5, 0.25)),
        (lambda: GradientClipping(np.int64(2)), GradientClipping(2.0)),
        (lambda: AdaptiveGradientClipping(np.float16(0.5), np.float64(0.25)), AdaptiveGradientClipping(0.5, 0.25)),
        (lambda: LAMB(np.float64(0.5)), LAMB(0.5)),
        (lambda: PolyakCap(loss_floor=np.float64(0.5)), PolyakCap(loss_floor=0.5)),
        (lambda: Clippy(exclude=(name for name in ["kernel"])), Clippy(exclude=("kernel",))),
    ],
)
def test_settings_of_numpy_and_patterns_of_any_iterable_are_kept_as_pythons_own(given: Any, plain: Any) -> None:
    treatment = given()
    assert treatment == plain
    json.dumps(treatment.describe())
    gradients = [tf.constant(drawn((4, 3), 10.0))]
    weights, _, frames = run((treatment,), gradients)
    expected, _, other = run((plain,), gradients)
    assert np.array_equal(weights, expected)
    assert np.array_equal(frames.stats, other.stats, equal_nan=True)
