"""`lossguard gate` against a real service: answers, exit codes, and what gets published."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from gate_runs import DIGEST, Service
from typer.testing import CliRunner, Result

from lossguard.cli.main import app
from lossguard.gate.client import Question, ask, open_client, wait
from lossguard.gate.digest import artifact_digest
from lossguard.gate.errors import GateRefused, GateUnreachable
from lossguard.gate.verify import verify

runner = CliRunner()


def gate(*arguments: object) -> Result:
    return runner.invoke(app, ["gate", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def runs(service: Service) -> Service:
    service.trainer("fit").train(300)
    service.trainer("broken").train(400, checkpoints=(150,), collapsed_from=251)
    return service


def test_a_pass_exits_0_and_publishes(runs: Service, model: Path, tmp_path: Path) -> None:
    serving = tmp_path / "serving" / "ranker"
    result = gate("check", "--run", "fit", "--step", 300, "--artifact", model, "--service", runs.url,
                  "--publish-to", serving)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "pass" in result.output
    answer = verify(serving / "1")
    assert (answer.verdict.run, answer.verdict.artifact_digest) == ("fit", artifact_digest(model))
    explained = gate("explain", serving / "1", "--service", runs.url)
    assert explained.exit_code == 0
    assert answer.verdict.id in explained.output


def test_a_block_exits_1_says_why_and_publishes_nothing(runs: Service, model: Path, tmp_path: Path) -> None:
    result = gate("publish", "--run", "default/broken", "--step", 400, "--artifact", model, "--service", runs.url,
                  "--to", tmp_path / "serving")  # fmt: skip
    assert result.exit_code == 1
    for word in ("Task click", "step 150 (ckpt-150)", "no_open_incident", "batch_auc/click"):
        assert word in result.output
    assert not (tmp_path / "serving").exists()


def test_json_is_one_document_with_the_verdict_and_the_place(runs: Service, model: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"auc/click": 0.67, "rmse/play": 4.0}')
    result = gate("publish", "--run", "fit", "--step", 300, "--artifact", model, "--service", runs.url, "--metrics",
                  metrics, "--to", tmp_path / "serving", "--version", 12, "--format", "json")  # fmt: skip
    document = json.loads(result.stdout)
    assert (result.exit_code, document["outcome"]) == (0, "pass")
    assert document["published"] == str(tmp_path / "serving" / "12")
    explained = gate("explain", document["id"], "--service", runs.url, "--format", "json")
    assert json.loads(explained.stdout)["id"] == document["id"]


def test_an_unknown_run_exits_3(runs: Service, model: Path) -> None:
    result = gate("check", "--run", "nobody", "--step", 5, "--artifact", model, "--service", runs.url)
    assert result.exit_code == 3
    assert "never heard of run nobody" in result.output


def test_no_service_exits_4_and_publishes_nothing(model: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = gate("publish", "--run", "fit", "--step", 5, "--artifact", model, "--service", url, "--to",
                      tmp_path / "serving", "--format", "json")  # fmt: skip
    assert result.exit_code == 4
    assert json.loads(result.stdout)["outcome"] is None
    assert "gave no answer" in result.stderr
    assert not (tmp_path / "serving").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "a/b/c"], "PROJECT/RUN"),
        (["--run", ""], "PROJECT/RUN"),
        (["--run", "/x"], "PROJECT/RUN"),
        (["--step", 0], "1 or more"),
        (["--step", "ten"], "valid integer"),
        (["--artifact", "/nowhere"], "does not exist"),
        (["--policy", "lenient"], "there are default"),
        (["--metrics", "/nowhere.json"], "cannot be read"),
        (["--wait", "soon"], "90s, 10m or 1h"),
        (["--format", "xml"], "table or json"),
        (["--service", "ftp://x"], "is not a URL"),
        (["--version", 3], "goes with --publish-to"),
    ],
)
def test_wrong_use_exits_2_with_a_sentence(runs: Service, model: Path, arguments: list[object], words: str) -> None:
    usual: dict[object, object] = {"--run": "fit", "--step": 300, "--artifact": model, "--service": runs.url}
    usual |= {arguments[0]: arguments[1]}
    result = gate("check", *[part for pair in usual.items() for part in pair])
    assert result.exit_code == 2, result.output
    assert words in result.output.replace("\n", " ")


@pytest.mark.parametrize("content", ["[]", "{", '{"auc/click": "good"}', '{"auc/click": true}', '{"auc/click": null}'])
def test_metrics_that_are_none_exit_2(runs: Service, model: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    result = gate("check", "--run", "fit", "--step", 300, "--artifact", model, "--service", runs.url, "--metrics",
                  tmp_path / "metrics.json")  # fmt: skip
    assert result.exit_code == 2
    assert "--metrics" in result.output


def test_waiting_ends_when_the_telemetry_has_arrived(runs: Service, model: Path) -> None:
    trainer = runs.trainer("arriving").train(128, stop=None)
    said: list[str] = []

    def sleep(_: float) -> None:
        trainer.train(192, start=128)

    with open_client(runs.url) as client:
        question = Question("default", "arriving", 192, artifact_digest(model), scan=SCAN)
        answer = wait(
            client, question, 600, clock=lambda: 0.0, sleep=sleep, said=lambda a: said.append(a.verdict.outcome)
        )
    assert (said, answer.verdict.outcome) == (["insufficient_data"], "pass")


def test_waiting_gives_up_when_the_time_is_over(runs: Service, model: Path) -> None:
    times = iter(range(0, 1000, 7))
    question = Question("default", "nobody", 192, artifact_digest(model))
    with open_client(runs.url) as client:
        answer = wait(client, question, 20, clock=lambda: float(next(times)), sleep=lambda _: None)
    assert answer.verdict.outcome == "insufficient_data"
    with open_client("http://127.0.0.1:9") as client, pytest.raises(GateUnreachable):
        wait(client, question, 20, clock=lambda: float(next(times)), sleep=lambda _: None)


SCAN = {"kind": "savedmodel", "tensors": 12, "values": 100_000, "nonfinite": {}, "complete": True}


class Liar(BaseHTTPRequestHandler):
    """A service, or something before it, that answers wrongly."""

    answers: list[tuple[int, bytes]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        status, body = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("location", "http://127.0.0.1:1/")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def liar() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Liar)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def lie(liar: HTTPServer, *answers: tuple[int, bytes]) -> None:
    Liar.answers = list(answers)
    with open_client(f"http://127.0.0.1:{liar.server_port}") as client:
        ask(client, Question("default", "fit", 300, DIGEST), sleep=lambda _: None)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((200, b""), GateUnreachable),
        ((200, b"<html>hello</html>"), GateUnreachable),
        ((200, b"[]"), GateUnreachable),
        ((200, b"null"), GateUnreachable),
        ((200, b'{"outcome": "pass"}'), GateUnreachable),
        ((204, b""), GateUnreachable),
        ((302, b""), GateUnreachable),
        ((500, b"oops"), GateUnreachable),
        ((503, b'{"detail": "later"}'), GateUnreachable),
        ((401, b'{"detail": "send a token"}'), GateRefused),
        ((404, b'{"detail": "no such page"}'), GateRefused),
    ],
)
def test_an_answer_that_is_no_verdict_is_never_a_pass(
    liar: HTTPServer, answer: tuple[int, bytes], error: type[Exception]
) -> None:
    with pytest.raises(error):
        lie(liar, answer)


def test_a_true_verdict_about_something_else_is_not_an_answer(runs: Service, liar: HTTPServer) -> None:
    body = {"project": "default", "run": "fit", "step": 300, "artifact_digest": DIGEST, "scan": SCAN}
    true = runs.client.post("/v1/verdicts", json=body).json()
    lie(liar, (200, json.dumps(true).encode()))
    for name, value in (("run", "other"), ("step", 299), ("artifact_digest", "sha256:" + "6" * 64), ("policy", "mild")):
        with pytest.raises(GateUnreachable, match="not what was asked"):
            lie(liar, (200, json.dumps(true | {name: value}).encode()))
    with pytest.raises(GateUnreachable, match="does not follow from its checks"):
        lie(liar, (200, json.dumps(true | {"checks": [], "outcome": "pass"}).encode()))


def test_a_short_outage_is_survived(runs: Service, liar: HTTPServer) -> None:
    body = {"project": "default", "run": "fit", "step": 300, "artifact_digest": DIGEST, "scan": SCAN}
    true = runs.client.post("/v1/verdicts", json=body).content
    lie(liar, (503, b"{}"), (502, b""), (200, true))


def test_the_command_runs_without_the_services_packages_or_tensorflow() -> None:
    code = (
        "import sys\n"
        "for name in ('fastapi', 'sqlalchemy', 'tensorflow', 'keras', 'lossguard_service'):\n"
        "    sys.modules[name] = None\n"
        "from lossguard.cli.main import app\n"
        "from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(app, ['gate', 'check', '--run', 'x', '--step', '1', '--artifact', '/nowhere'])\n"
        "assert 'does not exist' in result.output, (result.output, result.exception)\n"
        "sys.exit(result.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr


def test_every_gate_command_says_what_each_option_is_and_takes_a_format() -> None:
    commands: dict[str, Any] = typer.main.get_command(app).commands["gate"].commands  # type: ignore[attr-defined]
    assert len(commands) >= 9
    for name, command in commands.items():
        assert [one.name for one in command.params if not getattr(one, "help", None)] == [], name
        assert "format" in {one.name for one in command.params}, name
        assert f"Example: lossguard gate {name}" in command.help
