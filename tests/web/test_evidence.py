"""What is told of an incident's onset: who moved, with which curve, and which batches came."""

import doctest
import math
from dataclasses import replace

import numpy as np
from test_words import FULL, series, stored

from lossguard.trace.batches import MOST_BATCHES
from lossguard.wire.incident import Mover
from lossguard_service.incidents.batches import batches
from lossguard_service.store.lineage import Attempt
from lossguard_service.web import evidence


def attempt(number: int, last: int, superseded_after: int | None) -> Attempt:
    return Attempt(number, str(number), 0, None, None, None, 1, last, superseded_after=superseded_after)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(evidence).failed == 0


def test_the_curves_begin_well_before_the_first_mover_and_hold_the_onset() -> None:
    assert evidence.around(FULL) == (217, 279)
    late = replace(FULL, movers=(Mover("task", "click", 5000, 9.0),))
    first, last = evidence.around(late)
    assert first <= FULL.onset_step <= last
    assert last - first == evidence.LONGEST
    early = replace(FULL, first_signal_step=1, movers=(Mover("layer", "a", 1, 9.0),))
    assert evidence.around(early)[0] == 139


def test_a_rise_is_from_the_median_before_to_the_largest_after_or_to_what_is_not_finite() -> None:
    assert evidence.rise(series([1.0, 3.0, 2.0, 50.0, 7.0]), 4) == (2.0, 50.0)
    before, after = evidence.rise(series([1.0, math.nan, 3.0, 50.0, math.inf]), 4)
    assert before == 2.0
    assert math.isnan(after)
    assert all(map(math.isnan, evidence.rise(series([]), 4)))


def test_batches_are_told_from_before_the_first_signal_to_the_flag_and_only_by_single_steps() -> None:
    ids = series([float(1 << 40) + step for step in range(1, 301)])
    found = batches(FULL, ids)
    assert [one.step for one in found] == [256, 257, 258, 259, 260, 261]
    assert [one.note for one in found] == ["", "first signal", "", "onset", "", "flagged"]
    assert found[0].name == str((1 << 40) + 256)
    assert len(batches(replace(FULL, first_signal_step=20, detected_step=400), ids)) == MOST_BATCHES
    assert batches(FULL, replace(ids, last=ids.last + 1)) == ()
    assert batches(FULL, None) == ()
    assert [one.name for one in batches(FULL, ids, series([3.0] * 257))][:3] == [
        f"3:{(1 << 40) + 256}",
        f"3:{(1 << 40) + 257}",
        str((1 << 40) + 258),
    ]
    assert batches(FULL, series([math.nan] * 300))[0].name == "NaN"


def test_a_superseded_incident_is_shown_from_the_attempt_that_it_happened_in() -> None:
    attempts = [attempt(1, 320, 200), attempt(2, 300, 210), attempt(3, 500, None)]
    assert evidence.attempt_of(stored(FULL, superseded=True), attempts) == 2
    assert evidence.attempt_of(stored(FULL), attempts) is None
    assert evidence.attempt_of(stored(FULL, superseded=True), attempts[2:]) is None


def test_a_mover_of_which_nothing_was_measured_is_told_without_a_curve() -> None:
    mover = Mover("layer", "tower/kernel", 258, math.inf)
    row = evidence._row(mover, FULL, {}, [])
    assert (row.height, row.when, row.curve) == ("NaN or Inf", "1 step before", None)
    total = evidence._row(Mover("task", "", 259, 12.0), FULL, {"loss": series(list(np.arange(1.0, 301.0)))}, [])
    assert (total.name, total.measure, total.course) == ("total loss", "loss", "130, then up to 300")
    assert total.curve is not None
    assert total.curve.mark is not None
