"""Rules of one's own, beside the built-in detectors."""

import doctest
from typing import Any

import pytest

from lossguard.detect import period, rules, voices
from lossguard.detect.rules import Finding, apply
from lossguard.wire.frame import Frames

from .runs import curve, decay


class Seen:
    """Counts frames and says so at the hundredth."""

    kind: Any = "loss_spike"

    def init(self) -> int:
        return 0

    def update(self, seen: int, frames: Frames) -> tuple[int, tuple[Finding, ...]]:
        after = seen + len(frames)
        if seen < 100 <= after:
            step = int(frames.steps[100 - seen - 1])
            return after, (Finding(self.kind, step, step, f"Frame 100 is step {step}.", "Nothing."),)
        return after, ()


@pytest.mark.parametrize("cut", [1, 99, 100, 101, 250])
def test_a_rule_is_numbered_after_ours_and_does_not_care_about_blocks(cut: int) -> None:
    frames = curve(decay(300))
    (incident,) = apply(Seen(), [frames[:cut], frames[cut:]], 7)
    assert (incident.number, incident.onset_step, incident.kind) == (7, 100, "loss_spike")


def test_a_kind_that_does_not_exist_is_refused_with_the_rules_name() -> None:
    rule = Seen()
    rule.kind = "bad_weather"
    with pytest.raises(ValueError, match=r"Seen.*bad_weather"):
        apply(rule, [curve(decay(300))], 0)


def test_a_rule_that_raises_is_named_with_its_error() -> None:
    class Wrong(Seen):
        def update(self, seen: int, frames: Frames) -> tuple[int, tuple[Finding, ...]]:
            return frames.schema.scalars.index("no such scalar"), ()

    with pytest.raises(rules.RuleError, match=r"rule Wrong: update raised ValueError"):
        apply(Wrong(), [curve(decay(30))], 0)


@pytest.mark.parametrize("module", [rules, voices, period])
def test_the_examples_in_the_docstrings_hold(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
