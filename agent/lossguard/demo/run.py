"""The demo from end to end: service, sidecar, two trainings, the gate, publishing.

Guarantees: nothing here fakes what a part does; the two trainings differ in the treatment alone. Every process is
ended however the demo ends. What is published passed the gate and bears its signature. Files go to
`.lossguard/` and `serving/` of the folder it runs in, and a second demo there takes new run names and the next version.
"""

import fcntl
import importlib.util
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from lossguard.demo.children import Child, ChildError, Children, wait_for_file
from lossguard.demo.train import Spec
from lossguard.demo.view import RunView, Service
from lossguard.gate.client import call, open_client, question_about, wait
from lossguard.gate.errors import GateError, GateUnreachable
from lossguard.gate.publish import publish
from lossguard.gate.signature import read_keys
from lossguard.wire.numbers import from_json_number

PROJECT: Final = "demo"
POLICY: Final = "default"
HOME: Final = Path(".lossguard")
SERVING: Final = Path("serving/ranker")
KEYS: Final = HOME / "gate.pub"
"""The public keys of the service; a serving host would have them: `lossguard gate verify DIR --key FILE`."""
TRAININGS: Final[tuple[tuple[str, Literal["none", "clippy"]], ...]] = (("plain", "none"), ("clippy", "clippy"))
MIN_STEPS: Final = 100
ARRIVAL_SECONDS: Final = 90.0
_VIEW_SECONDS: Final = 1.0
_START_SECONDS: Final = 60.0
_NEEDED: Final = (
    "tensorflow",
    "keras",
    "fastapi",
    "uvicorn",
    "sqlalchemy",
    "alembic",
    "pydantic_settings",
    "cryptography",
)


class DemoError(Exception):
    """The demo cannot go on; the message says what to do. What was published stays, processes are ended."""


@dataclass(frozen=True, slots=True)
class Options:
    """What can be chosen.

    Attributes:
        data: folder of KuaiRand-Pure; None generates a stream.
        seed: of weights, batches and the generated stream.
        steps: of each training.
        learning_rate: the peak of the ramp.
        port: of the service; 0 takes a free one.
        restart_seconds: how long a process that died stays dead before it is started again.
    """

    data: Path | None
    seed: int
    steps: int
    learning_rate: float
    port: int = 0
    restart_seconds: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise DemoError(f"--learning-rate: must be a finite number above 0, got {self.learning_rate:g}")
        if self.steps < MIN_STEPS:
            raise DemoError(f"--steps: at least {MIN_STEPS} are needed to see anything, got {self.steps}")
        if self.seed < 0:
            raise DemoError(f"--seed: must be 0 or more, got {self.seed}")
        if not 0 <= self.port <= 65535:
            raise DemoError(f"--port: must be 0 to 65535, got {self.port}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One training, from its first step to the gate's answer.

    Attributes:
        run: its name.
        treatment: "none" or "clippy".
        view: what the service says; None if it knows nothing.
        metrics: from the last day, which the training has not seen.
        verdict: `pass`, `block` or `insufficient_data`.
        reasons: why not, in words; empty with a pass.
        published: where the model is visible to TensorFlow Serving.
        page: the run's page.
        seconds: from the trainer's start to its export.
    """

    run: str
    treatment: str
    view: RunView | None
    metrics: dict[str, float]
    verdict: str
    reasons: tuple[str, ...]
    published: Path | None
    page: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _Trained:
    """What a trainer said last."""

    metrics: dict[str, float]
    attempt: str | None


class Stage(Protocol):
    """Where a person watches."""

    def say(self, sentence: str) -> None:
        """Something happened."""

    def progress(self, run: str, step: int, steps: int, view: RunView | None) -> None:
        """A training has come so far; `view` is None while the service does not answer."""

    def waits(self, run: str) -> None:
        """The training is over; its telemetry is on the way."""


def check_installed(data: Path | None) -> None:
    """Say now what would be missing later.

    Raises:
        DemoError: a package is not installed.
    """
    wanted = (*_NEEDED, "pyarrow") if data is not None else _NEEDED
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(f'the demo needs {", ".join(missing)}: pip install "lossguard[demo]"')


@contextmanager
def stage(options: Options, watcher: Stage) -> Iterator[tuple[str, list[Outcome]]]:
    """Run the whole demo; inside the block its service is still up.

    Args:
        options: what to train on, and how.
        watcher: is told what happens.

    Yields:
        The service's URL and the outcome of each training, in order.

    Raises:
        DemoError, ChildError: something does not start or ends badly.
    """
    HOME.mkdir(exist_ok=True)
    with _alone(), Children(HOME, watcher.say, restart_seconds=options.restart_seconds) as children:
        url = _start_service(children, options.port)
        journal = HOME / "journal"
        journal.mkdir(exist_ok=True)
        children.start("sidecar", ["-m", "lossguard", "sidecar", str(journal), "--service", url], restart=True)
        service = Service(url)
        try:
            number = _next_number(service, journal)
            outcomes = []
            for word, treatment in TRAININGS:
                spec = Spec(
                    project=PROJECT,
                    run=f"{word}-{number}",
                    treatment=treatment,
                    seed=options.seed,
                    steps=options.steps,
                    learning_rate=options.learning_rate,
                    data=None if options.data is None else str(options.data),
                    journal=str(journal),
                    export=str(HOME / "staging" / f"{word}-{number}"),
                    checkpoints=str(HOME / "checkpoints" / f"{word}-{number}"),
                )
                outcomes.append(_one(spec, children, service, watcher))
            yield url, outcomes
            children.check()
        finally:
            service.close()


def _one(spec: Spec, children: Children, service: Service, watcher: Stage) -> Outcome:
    began = time.monotonic()
    trained = _train(spec, children, service, watcher)
    seconds = time.monotonic() - began
    watcher.waits(spec.run)
    view = service.wait(PROJECT, spec.run, spec.steps, ARRIVAL_SECONDS, children.check)
    verdict, reasons, published = _judge(spec, service.url, trained)
    page = f"{service.url}/runs/{PROJECT}/{spec.run}"
    return Outcome(spec.run, spec.treatment, view, trained.metrics, verdict, reasons, published, page, seconds)


def _train(spec: Spec, children: Children, service: Service, watcher: Stage) -> _Trained:
    shutil.rmtree(spec.export, ignore_errors=True)
    file = HOME / "training.json"
    file.write_text(spec.dumps())
    child = children.start("trainer", ["-m", "lossguard.demo.train", str(file)], read=True)
    children.tell(run=spec.run, step=0)
    trained: _Trained | None = None
    view: RunView | None = None
    looked = 0.0
    for line in _lines(child):
        children.check()
        if "error" in line:
            raise DemoError(str(line["error"]))
        if "metrics" in line:
            metrics = {name: from_json_number(value) for name, value in line["metrics"].items()}
            trained = _Trained(metrics, line["attempt"])
        if time.monotonic() - looked >= _VIEW_SECONDS:
            view, looked = service.run(PROJECT, spec.run), time.monotonic()
            children.tell(step=line["step"])
        watcher.progress(spec.run, line["step"], spec.steps, view)
    code = child.process.wait()
    children.end("trainer")
    if code != 0 or trained is None:
        raise DemoError(
            f"the training of {spec.run} ended with exit code {code}: {child.last_words} (log: {child.log})"
        )
    return trained


def _lines(child: Child) -> Iterator[dict[str, Any]]:
    assert child.process.stdout is not None
    for line in child.process.stdout:
        yield json.loads(line)


def _judge(spec: Spec, url: str, trained: _Trained) -> tuple[str, tuple[str, ...], Path | None]:
    """Ask the gate, and publish what passes."""
    try:
        question = question_about(
            spec.export,
            PROJECT,
            spec.run,
            spec.steps,
            policy=POLICY,
            metrics=trained.metrics,
            attempt=trained.attempt,
        )
        with open_client(url) as client:
            answer = wait(client, question, 20.0, pause_seconds=2.0)
            known = call(client, "GET", "/v1/keys")["keys"]
        if answer.verdict.outcome != "pass":
            return answer.verdict.outcome, answer.verdict.reasons, None
        KEYS.write_text("".join(f"{one['public']}\n" for one in known if one["state"] != "revoked"))
        keys = read_keys([KEYS])
        return "pass", (), publish(spec.export, SERVING, answer.verdict, document=answer.document, keys=keys)
    except GateUnreachable as error:
        return "insufficient_data", (str(error),), None
    except GateError as error:
        raise DemoError(str(error)) from None


def _start_service(children: Children, port: int) -> str:
    address = HOME / "address"
    address.unlink(missing_ok=True)

    def command(port: int) -> list[str]:
        return ["-m", "lossguard", "serve", "--port", str(port), "--address-file", str(address),
                "--database", f"sqlite:///{HOME}/lossguard.db"]  # fmt: skip

    child = children.start("service", command(port))
    url = wait_for_file(address, child, _START_SECONDS)
    # From now on it keeps its port: the sidecar and open pages know no other.
    child.command, child.restarts = command(int(url.rpartition(":")[2])), 0
    children.tell(service=url)
    return url


def _next_number(service: Service, journal: Path) -> int:
    """One more than the highest number of an earlier demo, be it in the service or still on the way to it."""
    names = [*service.names(PROJECT), *(entry.name for entry in journal.glob(f"{PROJECT}/*"))]
    numbers = [int(match[1]) for name in names if (match := re.fullmatch(r"[a-z]+-(\d{1,9})", name))]
    return max(numbers, default=0) + 1


@contextmanager
def _alone() -> Iterator[None]:
    """One demo at a time in a folder: two would take each other's run names and files."""
    lock = os.open(HOME / "demo.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError("another demo runs in this folder: end it, or start this one in another folder") from None
        yield
    finally:
        os.close(lock)


__all__ = ["ChildError", "DemoError", "Options", "Outcome", "Stage", "check_installed", "stage"]
