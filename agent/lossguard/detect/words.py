"""Records into incidents: the sentences that a person reads at three in the morning.

Each explanation is one sentence that names the task, the step and, where one was seen, the layer that moved first; each
advice says what to do, in the order in which it was measured to work (roll back weights and optimizer slots, then
change something; a lower learning rate alone rescues nothing).
"""

import math

from lossguard.detect.record import Moved, Record
from lossguard.wire.incident import Incident, Mover


def incident(record: Record) -> Incident:
    """The incident of a record."""
    return Incident(
        number=record.number,
        kind=record.kind,
        onset_step=record.onset_step,
        detected_step=record.detected_step,
        declared_full_step=record.declared_full_step,
        end_step=record.end_step,
        peak_step=record.peak_step,
        peak=record.peak,
        residual=record.residual,
        first_signal_step=record.first_signal_step,
        first_layer=record.first_layer,
        tasks=record.tasks,
        confidence=confidence(record),
        explanation=explanation(record),
        advice=advice(record),
        movers=tuple(sorted(map(_mover, record.movers), key=lambda one: (one.step, -one.height))),
    )


def _mover(kept: Moved) -> Mover:
    what, name, step, height = kept
    # Three digits: heights are single precision, and nobody reads more.
    return Mover(what, name, step, float(f"{height:.3g}") if math.isfinite(height) else height)


def confidence(record: Record) -> float:
    """0 to 1: how sure the kind is; grows with the height of the peak and with the evidence that declared it."""
    if record.kind == "nonfinite":
        return 1.0
    if record.kind == "full_divergence":
        return {"wrong": 0.97, "lost": 0.95, "lingering": 0.9, "constant": 0.9, "unlearned": 0.85}.get(
            record.reason, 0.8
        )
    height = abs(record.peak) if math.isfinite(record.peak) else 1e9
    return round(min(0.95, 0.5 + 0.15 * math.log10(max(height, 1.0))), 2)


def _before(record: Record) -> str:
    """The clause about what moved first."""
    if record.first_layer is None:
        return ""
    if record.first_signal_step is None:
        return f"; {record.first_layer} was the first layer to move afterwards"
    lead = record.onset_step - record.first_signal_step
    when = f"{lead} steps before" if lead > 1 else "1 step before" if lead == 1 else "in the same step"
    return f"; {record.first_layer} moved first, {when}"


def _rate(record: Record) -> str:
    """The clause about the learning rate."""
    if record.learning_rate < 1.5:
        return ""
    return f", just after the learning rate rose {record.learning_rate:.3g}-fold"


def _subject(record: Record) -> str:
    return "The total loss" if record.subject == "loss" else f"Task {record.subject}"


def _progress(share: float) -> str:
    return "more than all progress" if share > 1 else f"{share:.0%} of all progress"


def explanation(record: Record) -> str:
    """One sentence."""
    start, tail = record.onset_step, _rate(record) + _before(record)
    name = _subject(record)
    if record.kind == "nonfinite":
        where = f"the gradient or weights of {record.first_layer}" if record.first_layer else record.subject
        return f"NaN or Inf in {where} since step {start}{_rate(record)}."
    if record.kind == "full_divergence":
        body = {
            "wrong": f"{name} is confidently wrong since step {start}: it paid {record.value:.2g} times the loss of a "
            "constant prediction, and its skill has not come back",
            "lost": f"{name} lost its skill at step {start} and shows {max(record.value, 0):.0%} of it now",
            "lingering": f"{name} lost more than half of its skill at step {start} and has not come back for "
            f"{record.detected_step and (record.declared_full_step or start) - start} steps",
            "unlearned": f"The loss blew up at step {start} before the model had learned, and {name.lower()} has been "
            "at chance ever since",
            "constant": f"{name} has answered nearly the same to every example since about step {start}",
            "worse": f"{name} left its baseline at step {start} and {_progress(record.value)} is lost, "
            "with no sign of return",
        }.get(record.reason, f"{name} left its baseline at step {start} and did not return")
        return f"{body}{tail}."
    ended = "is still away" if record.end_step is None else f"was back at step {record.end_step}"
    if record.kind == "micro_divergence":
        if record.declared_full_step is not None:
            return (
                f"{name} diverged at step {start} and was called a full divergence at step "
                f"{record.declared_full_step}, but it {ended}{tail}."
            )
        if record.reason == "constant":
            return f"{name} answers nearly the same to every example since about step {start}, and {ended}{tail}."
        return f"{name} left its baseline at step {start} and {ended}{tail}."
    if record.kind == "loss_spike":
        return f"{name} spiked at step {start} and {ended}; the tasks' metrics did not fall with it{tail}."
    layer = record.first_layer or "a layer"
    if record.kind == "regime_change":
        return _regime(record)
    return {
        "no_update": f"No layer has been updated since about step {start}, though the learning rate is not 0.",
        "stalled": f"No frame came for {record.value:.0f} seconds after step {start}.",
        "periodic_loss": f"The loss repeats itself every {record.value:.0f} logged steps (autocorrelation "
        f"{record.peak:.2f}): that is the period of an epoch, so the data are probably not shuffled.",
        "unconverged_layer": f"{layer} still moves {record.value:.0f} times as much as the median layer, while the "
        "others have settled; its inputs may be sparse or dead.",
        "dead_units": f"{record.value:.0%} of the gradient of {layer} is zero: its units died.",
        "learning_rate_not_decayed": f"The learning rate stays at {record.value:.3g} while the loss no longer falls.",
        "distribution_shift": f"The label mean of task {record.subject} moved by {record.value:+.0%} at about step "
        f"{start}; the data changed, not the model.",
        "overclipped": f"{layer} is clipped to {record.value:.1e} of its update, step after step: it hardly learns.",
    }.get(record.kind, f"{name}: {record.kind.replace('_', ' ')} since step {start}.")


def _regime(record: Record) -> str:
    """What changed."""
    start, factor = record.onset_step, record.learning_rate
    if record.reason == "attempt":
        return f"Attempt {record.value:.0f} begins at step {start}; the baselines begin anew."
    if record.reason == "task":
        several = "Tasks" if len(record.tasks) > 1 else "Task"
        return f"{several} {record.subject} joined at step {start}; the baseline of the total loss begins anew."
    if record.reason == "warm":
        return f"The warm-up ended at step {start}: the learning rate rose {factor:.3g}-fold, to {record.value:.3g}."
    way = f"rose {factor:.3g}-fold" if factor > 1 else f"fell to {factor:.3g} of what it was"
    return f"The learning rate {way} at step {start}, to {record.value:.3g}; what follows it begins anew."


def advice(record: Record) -> str:
    """What to do."""
    before = min(record.onset_step, record.first_signal_step or record.onset_step)
    back = f"Go back to a checkpoint from before step {before} that has its optimizer slots"
    if record.kind == "full_divergence":
        return f"{back}, then train on with Clippy or half the learning rate; do not export what came after it."
    if record.kind == "nonfinite":
        return f"{back}, and look at the batch of step {record.onset_step}; do not export what came after it."
    if record.kind == "micro_divergence":
        if record.end_step is None:
            return f"Do not export now; keep the checkpoints from before step {before} until it has recovered."
        return "It recovered; if it comes again, use Clippy, a longer warm-up or a lower learning rate."
    if record.kind == "loss_spike":
        return f"Nothing, unless it repeats: then look at the batch of step {record.onset_step}."
    return {
        "regime_change": "Nothing: it is what the run was told to do.",
        "no_update": "Look at the loss scaling, the clipping and the accumulators: nothing is learned meanwhile.",
        "stalled": "Look at the input pipeline and the workers at that time.",
        "periodic_loss": "Shuffle the data across the epoch, or widen the shuffle buffer.",
        "unconverged_layer": "Look at the features that feed it; a lower learning rate for this layer alone may help.",
        "dead_units": "Lower the learning rate or lengthen the warm-up; the units do not come back by themselves.",
        "learning_rate_not_decayed": "Let the learning rate decay at the end: it narrows the spread between trials.",
        "distribution_shift": "Check the data of that time before anything else.",
        "overclipped": "Raise the absolute threshold of the clipping, or leave this layer out of it.",
    }.get(record.kind, "Look at the run's page.")
