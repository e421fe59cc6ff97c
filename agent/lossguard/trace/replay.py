"""Run the detectors over a saved run, exactly as the service does over a live one."""

from lossguard.detect import monitor
from lossguard.trace.trace import Trace
from lossguard.wire.incident import RunReport


def replay(trace: Trace) -> RunReport:
    """The run as its detectors see it after its last step."""
    return monitor.report(judged(trace), trace.name)


def judged(trace: Trace) -> monitor.MonitorState:
    """The detectors' state after the last step; each attempt after the first begins where its steps go back to."""
    state = monitor.init(trace.tasks)
    for number, frames in enumerate(trace.attempts):
        if number:
            state = monitor.new_attempt(state, int(frames.steps[0]) - 1)
        state = monitor.update(state, frames)
    return state
