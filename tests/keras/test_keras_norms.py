"""Norms as every step takes them, with and without XLA, against float64."""

import numpy as np
import pytest
import tensorflow as tf

from lossguard.keras import measure

SIZES = (1, 511, (1 << 15) - 1, (1 << 15) + 3, (1 << 20) + 513)


def norms(tensors: list[np.ndarray], jit: bool) -> np.ndarray:
    take = tf.function(lambda given: measure.norms(given), jit_compile=jit, autograph=False)
    return np.asarray(take([tf.constant(one) for one in tensors]), "float64")


@pytest.mark.parametrize("jit", [False, True], ids=["", "XLA"])
def test_norms_of_many_equal_numbers_or_random_ones_are_exact_to_a_millionth(jit: bool) -> None:
    random = np.random.default_rng(1)
    given = [np.full(size, 0.1, "float32") for size in SIZES]
    given += [random.normal(size=size).astype("float32") for size in SIZES]
    exact = [np.linalg.norm(one.astype("float64")) for one in given]
    np.testing.assert_allclose(norms(given, jit), exact, rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True], ids=["", "XLA"])
def test_one_entry_that_is_not_finite_shows_in_a_norm_wherever_it_stands(jit: bool) -> None:
    size = SIZES[-1]
    given = []
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, size // 2, size - 1):
            given.append(np.ones(size, "float32"))
            given[-1][place] = value
    found = norms(given, jit)
    assert np.isnan(found[:3]).all()
    assert np.isposinf(found[3:]).all()
