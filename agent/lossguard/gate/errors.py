"""What can go wrong at the gate's release side; every message is a sentence that says what to do.

GateError
├── NotAModel            the path holds nothing that can be served; nothing was sent
├── ArtifactUnreadable   a link, a device or an unreadable file is in it; nothing was sent
├── ArtifactChanged      its bytes changed while we read them: wait until the export is done
├── GateUnreachable      the service gave no answer; there is no verdict, and without one nothing is published
├── GateRefused          the service refused the question (usage); correct it and ask again
├── NotPublished         the verdict does not allow it, or the place is taken; nothing became visible
└── NotVerified          what lies there is not what a verdict passed
"""


class GateError(Exception):
    """The root of this package's errors."""


class NotAModel(GateError):
    """The path holds nothing that can be served."""


class ArtifactUnreadable(GateError):
    """The artifact holds something that cannot be part of an export."""


class ArtifactChanged(GateError):
    """The artifact's bytes changed while they were read."""


class GateUnreachable(GateError):
    """The service gave no answer that can be used."""


class GateRefused(GateError):
    """The service understood, and refused the question.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NotPublished(GateError):
    """The export was not made visible, and nothing half-made was either."""


class NotVerified(GateError):
    """The model is not what a verdict passed."""
