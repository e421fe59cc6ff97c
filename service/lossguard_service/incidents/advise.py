"""What to recommend to a trainer: pure, from the incidents that count and the checkpoints that exist.

Measured: after a full divergence nothing but going back helps, weights and optimizer slots both, and then changing
something. So the answer is a rollback to the newest good checkpoint with slots, or a halt where there is none.
"""

from collections.abc import Sequence

from lossguard.wire.incident import BREAKING, Incident
from lossguard.wire.replies import Advice
from lossguard_service.store.checkpoints import Checkpoint, rollback_target

CONTINUE = Advice("continue", None, "No incident is open.")


def advise(incidents: Sequence[Incident], checkpoints: Sequence[Checkpoint]) -> Advice:
    """The advice for a run.

    Args:
        incidents: its incidents, superseded ones left out.
        checkpoints: those of its lineage.
    """
    still_open = [incident for incident in incidents if incident.end_step is None and incident.kind != "stalled"]
    breaking = [incident for incident in still_open if incident.kind in BREAKING]
    if not breaking:
        if not still_open:
            return CONTINUE
        return Advice("continue", None, f"Go on, but look at it: {still_open[-1].explanation}")
    worst = min(breaking, key=lambda incident: incident.onset_step)
    target = rollback_target(checkpoints, incidents)
    if target is None:
        return Advice(
            "halt",
            None,
            f"{worst.explanation} There is no checkpoint with optimizer slots from before it: stop and start over "
            "with half the learning rate or with Clippy.",
        )
    return Advice(
        "rollback",
        target.step,
        f"{worst.explanation} Go back to the checkpoint at step {target.step} ({target.path}) with its optimizer "
        "slots, and go on with half the learning rate or with Clippy.",
    )
