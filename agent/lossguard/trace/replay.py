"""Run the detectors over a saved run, exactly as the service does over a live one."""

from collections.abc import Sequence
from dataclasses import replace

from lossguard.detect import monitor
from lossguard.detect.rules import Rule, apply
from lossguard.trace.trace import Trace
from lossguard.wire.incident import RunReport


def replay(trace: Trace, caution: float = 1.0, rules: Sequence[Rule] = ()) -> RunReport:
    """The run as its detectors see it after its last step, and what rules of one's own find, numbered after theirs."""
    report = monitor.report(judged(trace, caution), trace.name)
    incidents = list(report.incidents)
    for rule in rules:
        for frames in trace.attempts:
            incidents += apply(rule, [frames], len(incidents))
    return replace(report, incidents=tuple(incidents))


def judged(trace: Trace, caution: float = 1.0) -> monitor.MonitorState:
    """The detectors' state after the last step; each attempt after the first begins where its steps go back to."""
    state = monitor.init(trace.tasks, caution)
    for number, frames in enumerate(trace.attempts):
        if number:
            state = monitor.new_attempt(state, int(frames.steps[0]) - 1)
        state = monitor.update(state, frames)
    return state
