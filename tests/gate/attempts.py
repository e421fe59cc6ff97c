"""Where attempts to get a bad model published happen, and what is looked at afterwards.

Each attempt acts against the real service and the real command or function, and does its best; then the serving folder
is looked at as TensorFlow Serving and the guard would. An attempt may fail in any way; it may not publish.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from gate_runs import Service, Trainer, make_model
from typer.testing import CliRunner, Result

from lossguard.cli.main import app
from lossguard.gate.client import Answer, ask, open_client, question_about
from lossguard.gate.errors import GateError
from lossguard.gate.guard import Guard
from lossguard.gate.publish import publish, version_of
from lossguard.gate.signature import read_keys

runner = CliRunner()
STEPS = 192


@dataclass
class Stage:
    """Where an attempt happens."""

    service: Service
    model: Path
    serving: Path
    keys: dict[str, bytes]
    tmp: Path
    name: str

    def publish(self, run: str | None = None, step: int = STEPS, artifact: Path | None = None, *more: object) -> Result:
        """What an honest pipeline runs."""
        arguments = ["publish", "--run", run or self.name, "--step", step, "--artifact", artifact or self.model,
                     "--service", self.service.url, "--to", self.serving, *more]  # fmt: skip
        return runner.invoke(app, ["gate", *map(str, arguments)])

    def trainer(self, **how: Any) -> Trainer:
        return self.service.trainer(self.name, **how)

    def good(self) -> Answer:
        """A true pass for the model, of a healthy run."""
        self.trainer().train(STEPS)
        with open_client(self.service.url) as client:
            answer = ask(client, question_about(self.model, "default", self.name, STEPS))
        assert answer.verdict.outcome == "pass", answer.verdict.reasons
        return answer

    def place(self, answer: Answer, model: Path | None = None, **how: Any) -> Path:
        return publish(
            model or self.model, self.serving, answer.verdict, document=answer.document, keys=self.keys, **how
        )


class Attempts(dict[str, Callable[[Stage], object]]):
    """The named attempts of one file; a decorator adds one."""

    def __call__(self, function: Callable[[Stage], object]) -> Callable[[Stage], object]:
        self[function.__name__] = function
        return function

    def fails(self, name: str, service: Service, tmp_path: Path) -> None:
        """Make the attempt, and see that nothing is published."""
        stage = stage_of(name, service, tmp_path)
        try:
            result = self[name](stage)
        except (GateError, OSError, ValueError, httpx.HTTPError):
            result = None
        if isinstance(result, Result):
            assert result.exit_code != 0, result.output
            assert result.exit_code in (1, 2, 3, 4), result.output
        if stage.serving.exists():
            Guard(stage.serving, stage.keys).look()
            assert [entry for entry in os.listdir(stage.serving) if version_of(entry) is not None] == []


def stage_of(name: str, service: Service, tmp_path: Path) -> Stage:
    """A stage of its own, with the keys that the service has now."""
    keys = read_keys([one["public"] for one in service.client.get("/v1/keys").json()["keys"]])
    return Stage(service, make_model(tmp_path / "export"), tmp_path / "serving", keys, tmp_path, f"try-{name}")
