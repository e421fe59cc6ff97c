"""A run of a Lossguard service, by its name or the address of its page: its export, read as a trace.

Every wait is bounded, redirects are not followed (a token would travel with them), and an export larger than
`MOST_BYTES` is refused. What a later attempt took back is not in an export: the rest is replayed attempt by attempt, as
the service judged it.
"""

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import httpx
import numpy as np

from lossguard.trace import npz
from lossguard.trace.trace import Trace, TraceError

TIMEOUT: Final = httpx.Timeout(300.0, connect=5.0)
"""The service builds the archive before the first byte comes: half a gigabyte of stats takes it a minute."""
MOST_BYTES: Final = 2 << 30


def address(name: str, service: str | None) -> str | None:
    """Where the export of a run lies; None if `name` names no run of a service.

    Args:
        name: `PROJECT/RUN`, or the address of the run's page or of its JSON.
        service: the service's address, for `PROJECT/RUN`.

    >>> address("https://lossguard.example/runs/ads/r17", None)
    'https://lossguard.example/v1/projects/ads/runs/r17/export'
    >>> address("ads/r17", "http://127.0.0.1:8787")
    'http://127.0.0.1:8787/v1/projects/ads/runs/r17/export'
    """
    if name.startswith(("http://", "https://")):
        parts = urlsplit(name)
        head, found, tail = parts.path.partition("/v1/projects/")
        if found:
            project, _, run = tail.partition("/runs/")
        else:
            head, _, tail = parts.path.partition("/runs/")
            project, _, run = tail.partition("/")
        base, run = f"{parts.scheme}://{parts.netloc}{head}", run.split("/")[0]
    elif service is not None:
        base, (project, _, run) = service.rstrip("/"), name.partition("/")
    else:
        return None
    if not project or not run or "/" in run:
        return None
    return f"{base}/v1/projects/{quote(unquote(project), safe='')}/runs/{quote(unquote(run), safe='')}/export"


def read(url: str, token: str | None = None) -> Trace:
    """Read a run from its export.

    Raises:
        TraceError: no answer, a refusal (with the service's own words), or something else than a trace.
    """
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with tempfile.TemporaryDirectory(prefix="lossguard-replay-") as folder:
        file = Path(folder) / "run.npz"
        try:
            with httpx.stream("GET", url, params={"format": "npz"}, headers=headers, timeout=TIMEOUT) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise TraceError(f"{url}: the service answers {answer.status_code}: {_words(answer)}")
                with file.open("wb") as out:
                    for part in answer.iter_bytes():
                        if out.tell() + len(part) > MOST_BYTES:
                            raise TraceError(
                                f"{url}: more than {MOST_BYTES >> 30} GiB; export a part of it with from and to"
                            )
                        out.write(part)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TraceError(
                f"{url}: no answer ({error or type(error).__name__}); is the service running there?"
            ) from None
        return by_attempts(npz.read(file))


def by_attempts(trace: Trace) -> Trace:
    """The frames of an export cut where its attempts began, as its `meta` says: [number, first step - 1, ...] each."""
    (frames,) = trace.attempts
    starts = sorted({int(attempt[1]) for attempt in trace.meta.get("attempts") or ()})
    edges = [0, *(int(np.searchsorted(frames.steps, start, side="right")) for start in starts), len(frames)]
    parts = tuple(frames[a:b] for a, b in itertools.pairwise(edges) if b > a)
    return replace(trace, attempts=parts or (frames,))


def _words(answer: httpx.Response) -> str:
    """What a refusal says."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase
