"""What the service says about a run, as far as the demo shows it.

Guarantees: every question is bounded in time. A service that does not answer is `None`, not an error: training goes on
without it and the journal keeps everything.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from lossguard.wire.incident import BREAKING, Incident

_TIMEOUT = httpx.Timeout(5.0, connect=2.0)
_DIVERGENCES = (*BREAKING, "micro_divergence")


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as the service knows it.

    Attributes:
        status: `healthy`, `recovered` or `diverged`.
        judged_step: the last step that the detectors have seen; 0 before the first.
        ended: whether the trainer said goodbye, and this has arrived.
        loss: the last one judged.
        missing: steps without a frame.
        incident: the episode that decides the status: the first breaking one, else the first divergence.
    """

    status: str
    judged_step: int
    ended: bool
    loss: Any
    missing: int
    incident: Incident | None


class Service:
    """Reads from the service at a URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def names(self, project: str) -> list[str]:
        """The names of a project's runs; empty if there is no answer."""
        document = self._get("/v1/runs", project=project, limit=1000)
        return [run["name"] for run in document["runs"]] if document else []

    def run(self, project: str, run: str) -> RunView | None:
        """The run, or None if the service does not know it yet or does not answer."""
        path = f"/v1/projects/{project}/runs/{run}"
        document = self._get(path)
        listed = self._get(f"{path}/incidents")
        if document is None or listed is None:
            return None
        incidents = [Incident.from_json(one) for one in listed["incidents"]]
        return RunView(
            status=document["status"],
            judged_step=document["judged_step"] or 0,
            ended=document["stop_reason"] is not None,
            loss=document["loss_last"],
            missing=sum(gap["last_step"] - gap["first_step"] + 1 for gap in document["gaps"]),
            incident=_decisive(incidents),
        )

    def wait(self, project: str, run: str, step: int, seconds: float, look: Callable[[], None]) -> RunView | None:
        """The run once the service has judged `step` and knows the end of the training, or what there is in time.

        Args:
            project, run: which.
            step: the last one trained.
            seconds: how long to wait at most.
            look: called between the questions.
        """
        end = time.monotonic() + seconds
        while True:
            view = self.run(project, run)
            if (view is not None and view.ended and view.judged_step >= step) or time.monotonic() > end:
                return view
            look()
            time.sleep(0.25)

    def _get(self, path: str, **query: Any) -> Any:
        try:
            response = self._client.get(path, params=query)
            return response.json() if response.is_success else None
        except (httpx.HTTPError, ValueError):
            return None


def _decisive(incidents: list[Incident]) -> Incident | None:
    breaking = [one for one in incidents if one.kind in BREAKING and one.end_step is None]
    divergences = [one for one in incidents if one.kind in _DIVERGENCES]
    return min(breaking or divergences, key=lambda one: one.onset_step, default=None)
