"""An incident in words, as the checks tell of it. Pure."""

from lossguard.wire.incident import BREAKING, Incident


def describe(incident: Incident) -> str:
    """The incident in words: which tasks, from which step on, which layer moved first.

    Its own explanation follows where it says something else.
    """
    kind = incident.kind.replace("_", " ")
    many = len(incident.tasks) > 1
    tasks = f"Task{'s' if many else ''} {', '.join(incident.tasks)}" if incident.tasks else "The run"
    verb = "collapsed:" if incident.kind in BREAKING else "are hit by" if many else "is hit by"
    text = f"{tasks} {verb} a {kind} from step {incident.onset_step} on (seen at step {incident.detected_step})"
    if incident.first_layer:
        text += f"; the layer that moved first was {incident.first_layer}"
        if incident.first_signal_step is not None:
            text += f", at step {incident.first_signal_step}"
    return f"{text}. {sentence(incident.explanation)}".rstrip()


def sentence(text: str) -> str:
    """The text with a full stop, if it says anything."""
    text = text.strip()
    return text if not text or text[-1] in ".!?" else text + "."
