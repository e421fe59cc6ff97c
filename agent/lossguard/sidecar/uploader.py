"""The uploader: ships the trainer's own run from inside the trainer, where no sidecar is wanted.

The journal stays between the trainer and the network: a dead service costs disk and never a step. What is not shipped
at the end lies in the journal for the run's next attempt or for a sidecar.
"""

import os
from pathlib import Path

from lossguard.sidecar.client import Client
from lossguard.sidecar.dispatcher import Dispatcher


class Uploader:
    """Ships one run's folder in a daemon thread.

    Args:
        run_folder: `<journal>/<project>/<run>`; may appear later.
        service: the service's URL.
        token: bearer token.

    Raises:
        ValueError: the URL or the token is none.
    """

    def __init__(self, run_folder: Path, service: str, *, token: str | None = None) -> None:
        self._client = Client(service, token=token)
        self._dispatcher = Dispatcher(
            lambda: [run_folder] if os.path.isdir(run_folder) else [], self._client, workers=1, poll_seconds=2.0
        )

    def start(self) -> None:
        """Begin to ship."""
        self._dispatcher.start()

    def wake(self) -> None:
        """Something was sealed."""
        self._dispatcher.wake()

    def close(self, timeout_seconds: float) -> bool:
        """Ship the rest, for so long and not at all while the service does not answer; True if all is shipped."""
        complete = self._dispatcher.drain(timeout_seconds).complete
        # A thread that still waits for an answer is a daemon, and lets go of run and connection when it has it.
        self._dispatcher.stop(timeout_seconds=1.0)
        self._client.close()
        return complete

    def forget_in_child(self) -> None:
        """After a fork, in the child: see `Dispatcher.forget_in_child`."""
        self._dispatcher.forget_in_child()

    @property
    def counters(self) -> dict[str, int]:
        """Chunks shipped, refused and tried again so far, and the bytes that wait."""
        status = self._dispatcher.status()
        return {
            "chunks_shipped": sum(run.shipped.chunks for run in status),
            "chunks_refused": sum(run.shipped.refused for run in status),
            "upload_retries": sum(run.shipped.retries for run in status),
            "backlog_bytes": sum(run.backlog_bytes for run in status),
        }
