"""docs/gate.md: its examples run as they stand, and its tables are the code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gate_runs import Service, healthy
from typer.testing import CliRunner

from lossguard.cli.main import app
from lossguard.gate.verify import verify
from lossguard.wire.verdict import EXIT_CODES, EXIT_UNREACHABLE, EXIT_USAGE
from lossguard_service.gate.decide import decide
from lossguard_service.gate.facts import Canary, Previous, Trial
from lossguard_service.gate.policy import DEFAULT

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "gate.md").read_text()


def example(name: str) -> str:
    found = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"docs/gate.md has lost its example {name}"
    return found[1]


def python(name: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(example(name), f"docs/gate.md: {name}", "exec"), names)
    return names


@pytest.fixture(scope="module")
def ranker(service: Service) -> Service:
    service.trainer("ranker").train(192)
    service.trainer("wrecked").train(192, collapsed_from=100)
    return service


def shell(script: str, service: Service, model: Path, serving: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "STEP": "192", "EXPORT": str(model), "SERVING": str(serving),
                        "LOSSGUARD_SERVICE": service.url}  # fmt: skip
    return subprocess.run(["bash", "-e", "-c", script], env=env, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_shell_pipeline_publishes_a_pass_and_stops_at_a_block(ranker: Service, model: Path, tmp_path: Path) -> None:
    done = shell(example("shell"), ranker, model, tmp_path / "serving", tmp_path)
    assert done.returncode == 0, done.stderr
    verify(tmp_path / "serving" / "1")
    wrecked = example("shell").replace("--run ranker", "--run wrecked") + "\ntouch went-on\n"
    assert shell(wrecked, ranker, model, tmp_path / "serving", tmp_path).returncode == 1
    assert not (tmp_path / "went-on").exists()


def test_the_actions_step_writes_the_verdict(ranker: Service, model: Path, tmp_path: Path) -> None:
    script = re.search(r"run: \|\n(.*)", example("actions"), re.DOTALL)
    assert script
    done = shell(script[1], ranker, model, tmp_path / "serving", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "verdict.json").read_text())["outcome"] == "pass"


def test_the_task_returns_the_place_or_fails(ranker: Service, model: Path, tmp_path: Path) -> None:
    release = python("task")["release"]
    verify(release(ranker.url, "ranker", 192, str(model), str(tmp_path / "serving")))
    with pytest.raises(RuntimeError, match="collapsed"):
        release(ranker.url, "wrecked", 192, str(model), str(tmp_path / "serving"))


def test_the_tfx_component_blesses_a_pass_only(ranker: Service, model: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model.rename(tmp_path / "model" / "Format-Serving")
    for run, file in (("ranker", "BLESSED"), ("wrecked", "NOT_BLESSED")):
        # TFX itself pins another TensorFlow; the component only needs these two attributes of its artifacts.
        properties: dict[str, int] = {}
        blessing = SimpleNamespace(uri=str(tmp_path / run), set_int_custom_property=properties.__setitem__)
        python("tfx")["bless"](SimpleNamespace(uri=str(tmp_path / "model")), blessing, ranker.url, run, 192)
        assert properties == {"blessed": int(run == "ranker")}
        assert sorted(os.listdir(tmp_path / run)) == sorted([file, "lossguard_verdict.json"])


def test_the_registry_gets_its_alias_for_a_pass_only(ranker: Service, model: Path) -> None:
    for run, promoted in (("ranker", True), ("wrecked", False)):
        calls: list[tuple[str, ...]] = []
        client = SimpleNamespace(
            set_model_version_tag=lambda *a, calls=calls: calls.append(a),
            set_registered_model_alias=lambda *a, calls=calls: calls.append(a),
        )
        assert python("mlflow")["promote"](client, "m", "3", ranker.url, run, 192, str(model)) is promoted
        assert (("m", "champion", "3") in calls) is promoted


def test_the_init_container_verifies(ranker: Service, model: Path, tmp_path: Path) -> None:
    assert shell(example("shell"), ranker, model, tmp_path / "serving", tmp_path).returncode == 0
    assert shell("lossguard gate keys --out gate.pub", ranker, model, tmp_path, tmp_path).returncode == 0
    found = re.search(r"command: (\[.*\])", example("kubernetes"))
    assert found
    command = " ".join(json.loads(found[1])).replace("/models/ranker", "serving").replace("/etc/lossguard/", "")
    assert shell(command, ranker, model, tmp_path, tmp_path).returncode == 0
    (tmp_path / "serving" / "1" / "fingerprint.pb").write_bytes(b"fq")
    assert shell(command, ranker, model, tmp_path, tmp_path).returncode == 1


def test_the_policy_is_stored_and_judges(ranker: Service, model: Path, tmp_path: Path) -> None:
    (tmp_path / "nightly.yaml").write_text(example("policy").replace("nightly\n", "from-docs\n", 1))
    stored = shell("lossguard gate policy nightly.yaml --author ann", ranker, model, tmp_path, tmp_path)
    assert (stored.returncode, stored.stdout[:11]) == (0, "from-docs 1"), stored.stderr
    asked = shell('lossguard gate check --run ranker --step 192 --artifact "$EXPORT" --policy from-docs', ranker, model,
                  tmp_path, tmp_path)  # fmt: skip
    assert asked.returncode == 3
    assert "wants auc/click from held-out data" in asked.stdout.replace("\n", " ")
    listed = shell("lossguard gate policy --format json", ranker, model, tmp_path, tmp_path)
    assert {"default", "strict", "from-docs"} <= {one["name"] for one in json.loads(listed.stdout)["policies"]}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.yaml", "name: [", "not YAML"),
        ("p.toml", "name =", "cannot be read as toml"),
        ("p.json", "[1]", "holds no rules"),
        ("p.ini", "name=x", "name it .yaml"),
        ("p.json", '{"name": "x", "speed": 1}', "no such rule"),
        ("p.json", '{"name": "default"}', "built in"),
        ("p.toml", 'name = "x"\nquality_steps = inf', "quality_steps"),
    ],
)
def test_a_policy_file_that_is_none_is_refused(
    ranker: Service, tmp_path: Path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    command = ["gate", "policy", str(tmp_path / name), "--author", "ann", "--service", ranker.url]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert words in done.output


def test_the_tables_are_the_code() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", PAGE, re.MULTILINE)}
    assert codes == {*EXIT_CODES.values(), EXIT_USAGE, EXIT_UNREACHABLE}
    section = PAGE.partition("## What is checked")[2].partition("## Policies")[0]
    rows = "".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    listed = set(re.findall(r"`([a-z_]+)[:/`]", rows))
    from dataclasses import replace

    facts = replace(
        healthy(),
        metrics={"auc/click": 0.7},
        previous={"auc/click": Previous(0.7, "c" * 32, "monday", 900)},
        canary=Canary(8, 0, 0.3),
    )
    trials = tuple(Trial(f"trial-{n}", False, True, 400, {"batch_auc/click": 0.67}) for n in range(3))
    checks = (*decide(DEFAULT, facts), *decide(DEFAULT, replace(facts, trials=trials)))
    assert listed == {re.split(r"[:/]", check.name)[0] for check in checks}
