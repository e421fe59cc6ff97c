"""What happened, in words: pure functions from a run's incidents to the sentences at the top of its page.

The headline alone must tell a person who was paged what broke, where it began and what to do, whatever the detectors
wrote into `explanation` and `advice`; both are shown beside it as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from lossguard.wire.incident import BREAKING, Incident
from lossguard_service.store.checkpoints import Checkpoint
from lossguard_service.store.incidents import StoredIncident
from lossguard_service.store.runs import Phase, Run
from lossguard_service.web.words import KINDS, count, duration, listing, number, share, whole

Tone = Literal["critical", "warning", "info", "good", "quiet"]
MOST_MOMENTS: Final = 6
_WEIGHT = {"critical": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Fact:
    """One labelled line of a headline.

    Attributes:
        label: what it is about.
        text: the sentence.
        code: a layer or path to be set in the code face after the text; None if there is none.
    """

    label: str
    text: str
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Headline:
    """The top of a page.

    Attributes:
        tone: how loud.
        title: the sentence.
        facts: what, where, how bad.
        explanation, advice: the detectors' own words; empty if there is no incident.
        sequence: the incident it is about; None if none.
    """

    tone: Tone
    title: str
    facts: tuple[Fact, ...] = ()
    explanation: str = ""
    advice: str = ""
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """One entry of an incident's timeline; `code` as in `Fact`."""

    step: int
    title: str
    text: str = ""
    code: str | None = None
    tone: Tone = "quiet"


def rank(stored: StoredIncident) -> tuple[bool, bool, int, int]:
    """Sorts incidents: what counts, is open and breaks most first; among equals the earliest, which is the cause."""
    incident = stored.incident
    return (stored.superseded, not stored.is_open, _WEIGHT[incident.severity], incident.onset_step)


def headline(
    run: Run, incidents: Sequence[StoredIncident], phase: Phase, silent_seconds: float, target: Checkpoint | None
) -> Headline:
    """The top of a run's page.

    Args:
        run: the run.
        incidents: its incidents, in any order.
        phase: whether it trains.
        silent_seconds: since its last step rose.
        target: the checkpoint to go back to; None if there is none.
    """
    standing = [one for one in incidents if not one.superseded]
    if run.last_step is None:
        return _waits(run) or Headline("quiet", "The run has registered; its first frame has not arrived yet.")
    loud = [one for one in standing if one.incident.severity != "info"]
    if loud:
        return of_incident(min(loud, key=rank), target, run.last_step)
    if (waits := _waits(run)) is not None:
        return waits
    if phase == "stalled":
        return Headline(
            "warning",
            f"Silent for {duration(silent_seconds)}: the last frame was step {whole(run.last_step)}, "
            "and the trainer did not say that it stopped.",
            advice="Look whether the trainer still runs, and whether its sidecar reaches this service.",
        )
    judged = f"{whole(run.judged_step or run.last_step)} steps judged, no divergence."
    notices = [
        KINDS[one.incident.kind].lower()
        for one in sorted(standing, key=rank)
        if one.incident.kind != "regime_change"  # what the run was told to do is no reason to look
    ]
    if notices:
        return Headline("info", f"{judged[:-1]}; worth a look: {listing(list(dict.fromkeys(notices)))}.")
    return Headline("good", f"Healthy: {judged}")


def _waits(run: Run) -> Headline | None:
    """What there is to say of chunks that came before one that is missing."""
    if not run.waiting_chunks:
        return None
    judged = "nothing is judged yet" if run.judged_step is None else f"judged up to step {whole(run.judged_step)}"
    one = run.waiting_chunks == 1
    return Headline(
        "warning",
        f"{count(run.waiting_chunks, 'chunk')} {'waits' if one else 'wait'} for one that has not come: {judged}.",
        advice="If it stays so, look for damaged or refused chunks in the log of the trainer's sidecar.",
    )


def of_incident(stored: StoredIncident, target: Checkpoint | None, last_step: int | None) -> Headline:
    """The headline of one incident."""
    incident = stored.incident
    tone: Tone = incident.severity if stored.is_open else "warning" if incident.severity != "info" else "info"
    return Headline(
        tone=tone,
        title=_title(incident, is_open=stored.is_open),
        facts=tuple(_facts(incident, stored, target, last_step)),
        explanation=incident.explanation,
        advice=incident.advice,
        sequence=stored.sequence,
    )


def _title(incident: Incident, *, is_open: bool) -> str:
    onset, end = whole(incident.onset_step), incident.end_step
    tasks = list(incident.tasks)
    hit = f"{'task' if len(tasks) == 1 else 'tasks'} {listing(tasks)}" if tasks else "the total loss"
    where = f" in layer {incident.first_layer}" if incident.first_layer else ""
    match incident.kind:
        case "full_divergence":
            verb = "has" if len(tasks) <= 1 else "have"
            return f"Training diverged at step {onset} and did not recover: {hit} {verb} collapsed."
        case "micro_divergence" if end is not None:
            verb = "was" if len(tasks) <= 1 else "were"
            return f"Training diverged at step {onset} and recovered by step {whole(end)}: {hit} {verb} hit."
        case "micro_divergence":
            return f"Training is diverging since step {onset}: {hit} {'is' if len(tasks) <= 1 else 'are'} hit."
        case "nonfinite":
            until = f"since step {onset}" if end is None else f"from step {onset} to step {whole(end - 1)}"
            return f"NaN or Inf {until}{where}."
        case "no_update":
            return f"The weights stopped moving at step {onset}{where}."
        case "stalled":
            return f"No frame has come since step {onset}."
        case kind:
            state = "since" if is_open else "from"
            return f"{KINDS[kind]} {state} step {onset}{where}."


def _facts(incident: Incident, stored: StoredIncident, target: Checkpoint | None, last_step: int | None) -> list[Fact]:
    facts = []
    if incident.tasks:
        others = f", then {listing(list(incident.tasks[1:]))}" if len(incident.tasks) > 1 else ""
        label = "Broke first" if incident.severity != "info" else "Hit"
        facts.append(Fact(label, f"task {incident.tasks[0]}, at step {whole(incident.onset_step)}{others}"))
    if incident.first_layer:
        facts.append(Fact("Moved first", _lead(incident), incident.first_layer))
    elif incident.kind in ("full_divergence", "micro_divergence"):
        facts.append(Fact("Moved first", "no layer left its own baseline before the loss did"))
    if incident.kind != "stalled":
        facts.append(Fact("Flagged", f"at step {whole(incident.detected_step)}, {_flagged(incident).lower()}"))
    if incident.kind in ("full_divergence", "micro_divergence"):
        facts.append(
            Fact(
                "Worst",
                f"step {whole(incident.peak_step)}, {number(incident.peak, 3)} robust deviations from its baseline",
            )
        )
        facts.append(Fact("Its loss settled", _residual(incident)))
    if stored.is_open and incident.kind in BREAKING:
        text = (
            f"to step {whole(target.step)}, the newest checkpoint with slots from before the first signal"
            if target
            else "no checkpoint with optimizer slots from before the first signal is known"
        )
        facts.append(Fact("Roll back", text, target.path if target else None))
    if stored.is_open and last_step is not None and last_step > incident.onset_step:
        facts.append(Fact("Since then", f"{count(last_step - incident.onset_step, 'more step')} trained on it"))
    return facts


def _flagged(incident: Incident) -> str:
    late = incident.detected_step - incident.onset_step
    return f"{count(late, 'step')} after the onset" if late else "The step of the onset"


def _lead(incident: Incident) -> str:
    signal = incident.first_signal_step
    if signal is None:
        return "nothing before the onset; after it:"
    if signal == incident.onset_step:
        return "in the same step:"
    if signal > incident.onset_step:
        return f"at step {whole(signal)}, {count(signal - incident.onset_step, 'step')} after the loss:"
    return f"at step {whole(signal)}, {count(incident.onset_step - signal, 'step')} before the loss:"


def _residual(incident: Incident) -> str:
    residual = incident.residual
    if residual != residual:
        return "not yet known"
    if abs(residual) < 0.005:
        full = incident.kind == "full_divergence"
        return f"back at its level from before{', but its quality did not come back' if full else ''}"
    return f"{share(abs(residual))} {'worse' if residual > 0 else 'better'} than before"


def timeline(stored: StoredIncident, last_step: int | None) -> tuple[Moment, ...]:
    """What happened, in order of steps."""
    incident = stored.incident
    moments: list[Moment] = []
    signal = incident.first_signal_step
    if signal is not None:
        moments.append(
            Moment(signal, "First signal", "A layer left its own baseline:", incident.first_layer)
            if incident.first_layer
            else Moment(signal, "First signal", "A scalar left its own baseline.")
        )
    elif incident.first_layer:
        steps = [one.step for one in incident.movers if one.what == "layer" and one.name == incident.first_layer]
        at = min(steps, default=incident.onset_step)
        moments.append(
            Moment(at, "First layer", "After the onset, the first to leave its baseline:", incident.first_layer)
        )
    known = any(one.what == "task" for one in incident.movers)
    tasks = f"First hit: task {incident.tasks[0]}." if incident.tasks and not known else ""
    moments.append(Moment(incident.onset_step, "Onset", tasks, tone="warning"))
    moments.append(
        Moment(
            incident.detected_step,
            "Flagged",
            f"{_flagged(incident)}, with a confidence of {share(incident.confidence)}.",
        )
    )
    if incident.kind in ("full_divergence", "micro_divergence", "loss_spike"):
        worst = f"{number(incident.peak, 3)} robust deviations from the baseline frozen at the onset."
        moments.append(Moment(incident.peak_step, "Worst value", worst, tone="warning"))
    if incident.declared_full_step is not None:
        moments.append(
            Moment(incident.declared_full_step, "Called full", "No sign of recovery in time.", tone="critical")
        )
    if incident.end_step is not None:
        recovered = f"Settled {_residual(incident)}." if incident.kind == "micro_divergence" else ""
        moments.append(Moment(incident.end_step, "Over", recovered, tone="good"))
    elif last_step is not None and not stored.superseded:
        moments.append(
            Moment(max(last_step, incident.onset_step), "Still open", "The newest step judged.", tone="critical")
        )
    moments += _moved(incident)
    return tuple(sorted(moments, key=lambda moment: (moment.step, _ORDER.get(moment.title, 5))))


_ORDER: Final = {"First signal": 0, "First layer": 0, "Also moved": 1, "Onset": 2, "Total hit": 3, "Task hit": 4}


def _moved(incident: Incident) -> list[Moment]:
    """Who else left its baseline, and when: one moment for the layers of a step, one for each task."""
    moments = []
    layers = [one for one in incident.movers if one.what == "layer" and one.name != incident.first_layer]
    for step in list(dict.fromkeys(one.step for one in layers))[:MOST_MOMENTS]:
        names = listing([one.name for one in layers if one.step == step])
        moments.append(Moment(step, "Also moved", f"{names}."))
    tasks = [one for one in incident.movers if one.what == "task"]
    for one in tasks[:MOST_MOMENTS]:
        far = f", up to {number(one.height, 3)} scales above its baseline" if 0 < one.height < math.inf else ""
        moments.append(Moment(one.step, "Task hit" if one.name else "Total hit", f"{one.name or 'The loss'}{far}."))
    return moments
