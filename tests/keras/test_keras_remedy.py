"""What a rollback goes back to, and what it changes, without a training."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from lossguard.keras import Clippy, GradientClipping
from lossguard.keras.remedy import Remedy
from lossguard.keras.snapshots import Snapshot, Snapshots
from lossguard.keras.treatments.base import Proposal
from lossguard.wire.incident import Incident, IncidentKind


def episode(kind: IncidentKind, onset: int, end: int | None = None, signal: int | None = None) -> Incident:
    return Incident(
        number=0, kind=kind, onset_step=onset, detected_step=onset, declared_full_step=None, end_step=end,
        peak_step=onset, peak=9.0, residual=0.0, first_signal_step=signal, first_layer=None, tasks=(), confidence=1.0,
        explanation="", advice="",
    )  # fmt: skip


def copies(*steps: int, keep: int = 8) -> Snapshots:
    kept = Snapshots(keep)
    for step in steps:
        kept.add(Snapshot(step, [keras.Variable([float(step)])]))
    return kept


def chosen(kept: Snapshots, *episodes: Incident) -> int | None:
    found = kept.newest_good(episodes)
    return None if found is None else found.step


def test_the_newest_copies_are_kept_and_those_of_what_is_superseded_go() -> None:
    kept = copies(10, 20, 30, 40, keep=3)
    assert kept.steps == (20, 30, 40)
    kept.forget_after(30)
    assert kept.steps == (20, 30)


def test_a_copy_is_good_that_is_two_steps_older_than_the_first_sign_and_in_no_other_episode() -> None:
    kept = copies(10, 20, 30, 40, 50)
    assert chosen(kept) == 50
    assert chosen(kept, episode("full_divergence", 42)) == 40
    assert chosen(kept, episode("full_divergence", 41)) == 30
    assert chosen(kept, episode("nonfinite", 45, signal=32)) == 30
    assert chosen(kept, episode("nonfinite", 45, signal=48)) == 40
    # One that recovered: its end is the first step after it.
    assert chosen(kept, episode("full_divergence", 45), episode("micro_divergence", 35, end=41)) == 30
    assert chosen(kept, episode("full_divergence", 45), episode("micro_divergence", 35, end=40)) == 40
    assert chosen(kept, episode("loss_spike", 12)) == 50
    assert chosen(kept, episode("no_update", 11)) is None


def test_a_copy_is_written_whole_or_not_at_all() -> None:
    first, second = keras.Variable([1.0, 2.0]), keras.Variable([3.0])
    copy = Snapshot(5, [first, second])
    first.assign([9.0, 9.0])
    for _ in range(2):
        copy.fetch()
    for others in ([first], [first, keras.Variable([[3.0]])], [keras.Variable([1.0]), second]):
        with pytest.raises(ValueError, match="built anew since the snapshot"):
            copy.restore(others)
    assert first.numpy().tolist() == [9.0, 9.0]
    copy.restore([first, second])
    assert (first.numpy().tolist(), second.numpy().tolist()) == ([1.0, 2.0], [3.0])


def sigma(remedy: Remedy, layer: str = "dense/kernel") -> float:
    """Of an update of 1 to a weight of 0, which Clippy cuts to a hundredth."""
    one: Any = tf.constant([1.0])
    proposal = Proposal(0 * one, one, one, tf.constant(0.1))
    return float(np.prod([float(each.factor(proposal)) for each in remedy.treatments if each.applies_to(layer)]))


def described(remedy: Remedy) -> list[Any]:
    return [{**one.describe()}.get("awake", one.describe().get("rate")) for one in remedy.treatments]


def test_the_first_rollback_switches_clippy_on_and_each_further_one_halves_the_updates() -> None:
    remedy = Remedy("clippy", [GradientClipping()])
    assert sigma(remedy) == 1.0
    assert described(remedy) == [False, 1.0]
    assert remedy.change() == "Clippy is on"
    assert sigma(remedy) == pytest.approx(0.01)
    assert sigma(remedy, "embedding/embeddings") == 1.0
    assert described(remedy) == [True, 1.0]
    assert remedy.change() == "the learning rate is multiplied by 0.5"
    assert remedy.change() == "the learning rate is multiplied by 0.25"
    assert sigma(remedy) == pytest.approx(0.0025)
    assert sigma(remedy, "embedding/embeddings") == 0.25
    assert described(remedy) == [True, 0.25]


@pytest.mark.parametrize("remedy", [("half_learning_rate", []), ("clippy", [Clippy()])])
def test_with_clippy_on_already_or_not_wanted_the_first_rollback_halves(remedy: Any) -> None:
    made = Remedy(*remedy)
    assert described(made) == [1.0]
    assert made.change() == "the learning rate is multiplied by 0.5"
    assert (sigma(made), described(made)) == (0.5, [0.5])
