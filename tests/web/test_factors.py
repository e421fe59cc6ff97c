"""What a treatment's clipping factor would have been: the paper's formulas on what was measured."""

import numpy as np
import pytest
from pages_service import Service

from lossguard.wire.frame import Schema
from lossguard_service.store.buckets import Buckets
from lossguard_service.store.series import HeatMap
from lossguard_service.web.factors import factor, possible


def heat(stat: str, *values: float) -> HeatMap:
    """One layer, a step a bucket."""
    at, row = np.arange(1, len(values) + 1), np.array([values])
    return HeatMap(stat, ("dense/kernel",), at, at, row, row, np.zeros(row.shape, np.int64))


def test_each_factor_is_the_papers() -> None:
    ratio = heat("clippy_ratio", 0.5, 4.0, 0.0, np.inf, np.nan)
    np.testing.assert_array_equal(factor("would_be/clippy", ratio).maximum[0], [1, 0.25, 1, 0, np.nan])
    gradient, weight = heat("gradient_norm", 0.05, 0.4, 0.0, 10.0), heat("weight_norm", 2.0, 2.0, 2.0, 0.0)
    np.testing.assert_allclose(factor("would_be/gc", gradient).maximum[0], [1, 0.25, 1, 0.01])
    np.testing.assert_allclose(factor("would_be/agc", gradient, weight).maximum[0], [0.04, 0.005, 1, 0])


def test_the_factor_of_lamb_takes_the_learning_rate_out_of_the_update() -> None:
    at, one = np.arange(1, 4), np.ones((3, 1))
    rate = Buckets(at, at, one.astype(np.int64), 0 * one.astype(np.int64), 0.1 * one, 0.1 * one, 0.1 * one)
    found = factor("would_be/lamb", heat("update_norm", 0.2, 0.0, 1e-5), heat("weight_norm", 4.0, 4.0, 4.0), rate)
    np.testing.assert_allclose(found.maximum[0], [0.002, 0.001, 40])
    nothing = Buckets(at[:0], at[:0], *(getattr(rate, name)[:0] for name in Buckets.__slots__[2:]))
    assert np.isnan(factor("would_be/lamb", heat("update_norm", 0.2), heat("weight_norm", 4.0), nothing).maximum).all()


def test_a_factor_is_offered_where_its_stats_were_measured() -> None:
    assert set(possible(Schema((), ("a",), ("gradient_norm",)))) == {"would_be/gc"}
    assert set(possible(Schema((), ("a",), ("update_norm", "weight_norm")))) == set()
    assert set(possible(Schema(("learning_rate",), ("a",), ("update_norm", "weight_norm")))) == {"would_be/lamb"}


@pytest.mark.parametrize("name", ["clippy", "gc", "agc"])
def test_the_heat_map_shows_it_from_the_stored_stats(service: Service, name: str) -> None:
    page = service.client.get("/runs/ranker/plain").text
    assert f'value="would_be/{name}"' in page
    assert "would_be/lamb" not in page
    answer = service.client.get(f"/runs/ranker/plain/heatmap.json?stat=would_be/{name}&from=215&to=230").json()
    assert answer["smallest"] is True
    raw = {
        stat: np.array(
            service.client.get(f"/runs/ranker/plain/heatmap.json?stat={stat}&from=215&to=230").json()["maximum"]
        )
        for stat in ("clippy_ratio", "gradient_norm", "weight_norm")
    }
    expected = {
        "clippy": 1 / raw["clippy_ratio"],
        "gc": 0.1 / raw["gradient_norm"],
        "agc": 1e-3 * raw["weight_norm"] / raw["gradient_norm"],
    }[name]
    np.testing.assert_allclose(answer["maximum"], np.minimum(1, expected), rtol=1e-5)


def test_a_factor_that_was_not_measured_is_refused_with_a_sentence(service: Service) -> None:
    answer = service.client.get("/runs/ranker/plain/heatmap.json?stat=would_be/lamb")
    assert answer.status_code == 404
    assert "update_norm" in answer.json()["title"]
