"""The Kubernetes examples: valid by the API's schemas, and with commands, settings and folders that exist."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lossguard_service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "kubernetes"
DOCUMENTS: list[tuple[str, dict[str, Any]]] = [
    (f"{path.name}: {document['kind']}", document)
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]


def containers() -> list[dict[str, Any]]:
    specs = [document["spec"]["template"]["spec"] for _, document in DOCUMENTS if "template" in document["spec"]]
    return [one for spec in specs for one in (*spec.get("initContainers", []), *spec["containers"])]


@pytest.mark.parametrize(("name", "document"), DOCUMENTS, ids=[name for name, _ in DOCUMENTS])
def test_the_manifest_is_valid_by_the_schema(name: str, document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_commands_exist_and_take_these_options() -> None:
    commands = [one["command"] for one in containers() if one.get("command", [""])[0] == "lossguard"]
    assert len(commands) == 3
    for command in commands:
        words = [word for word in command[1:] if re.fullmatch("[a-z]+", word)]
        script = "from lossguard.cli.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", script, *words, "--help"],
            capture_output=True,
            text=True,
            env=os.environ | {"COLUMNS": "200"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        for option in (word for word in command if word.startswith("--")):
            assert option in done.stdout, (command, option)


def test_settings_of_the_service_exist() -> None:
    known = {f"LOSSGUARD_{name.upper()}" for name in Settings.model_fields}
    (service,) = (one for one in containers() if one["name"] == "service")
    assert {one["name"] for one in service["env"]} <= known


def test_every_mount_has_its_volume() -> None:
    for name, document in DOCUMENTS:
        spec = document["spec"].get("template", {}).get("spec", {})
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for one in (*spec.get("initContainers", []), *spec.get("containers", [])):
            assert {mount["name"] for mount in one.get("volumeMounts", [])} <= volumes, name


def test_the_readme_names_every_file() -> None:
    text = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"`(\w+\.yaml)`", text)) == {path.name for path in FOLDER.glob("*.yaml")}
