"""docker-compose.yml: valid by the specification, and what each container runs is run here with the same files.

No Docker engine is needed: the same commands, the same environment, the same configuration files, with the addresses of
the compose network replaced by loopback.
"""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from dashboards.__main__ import FOLDER

from lossguard_service.settings import Settings
from postgres_cluster import cluster

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
TOKEN = "f" * 64


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def environment(name: str, **replacements: str) -> dict[str, str]:
    """The container's environment as compose would fill it in."""
    filled = {}
    for key, value in SERVICES[name].get("environment", {}).items():
        for variable in re.findall(r"\$\{[^}]*\}", value):
            known = {"LOSSGUARD_ADMIN_TOKEN": TOKEN}.get(re.split(r"[:}]", variable[2:])[0])
            value = value.replace(variable, known or variable[2:-1].partition(":-")[2])
        filled[key] = value
    assert filled.keys() >= replacements.keys()
    return os.environ | filled | replacements


def test_the_file_is_valid_by_the_compose_specification() -> None:
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / "docker-compose.yml")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_mounted_file_is_in_the_repository_and_every_image_is_pinned() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), (name, volume)
        if "build" in service:
            assert f" AS {service['build']['target']}\n" in dockerfile
        else:
            assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]
    assert all(
        re.search(r"python:3\.\d+\.\d+|^FROM (build|base)", line)
        for line in dockerfile.splitlines()
        if "FROM " in line[:5]
    )
    stages = dockerfile.split("\nFROM base AS ")[1:]
    assert [stage.split()[0] for stage in stages] == ["service", "sidecar", "gate", "trainer"]
    assert all("USER 10001" in stage and "HEALTHCHECK" in stage for stage in stages)


def test_settings_that_the_containers_get_exist() -> None:
    known = {f"LOSSGUARD_{name.upper()}" for name in Settings.model_fields}
    assert SERVICES["service"]["environment"].keys() <= known
    assert SERVICES["sidecar"]["environment"].keys() == {"LOSSGUARD_SERVICE", "LOSSGUARD_TOKEN"}
    assert SERVICES["service"]["deploy"] == {"replicas": 2}


def test_every_port_is_published_on_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_service_starts_as_written_on_postgresql_and_wants_its_token(tmp_path: Path) -> None:
    database = cluster(tmp_path / "postgres")
    address = tmp_path / "address"
    url = re.sub(r"^postgresql(\+\w+)?://", "postgresql://", database.get_uri())
    command = [sys.executable, *SERVICES["service"]["command"][1:], "--address-file", str(address)]
    filled = environment("service", LOSSGUARD_HOST="127.0.0.1", LOSSGUARD_PORT="0", LOSSGUARD_DATABASE=url)
    try:
        with running(command, env=filled, cwd=tmp_path, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "Lossguard listens on" in line
            with httpx.Client(base_url=address.read_text().strip(), timeout=60) as client:
                # The health check is the container's own, but for the port.
                check = SERVICES["service"]["healthcheck"]["test"][1:]
                check[-1] = check[-1].replace("http://127.0.0.1:8080", str(client.base_url).rstrip("/"))
                assert "timeout=2)" in check[-1]
                check[-1] = check[-1].replace("timeout=2)", "timeout=60)")
                subprocess.run([sys.executable, *check[1:]], check=True)
                assert client.get("/").status_code == 401
                assert client.get("/", auth=("anybody", TOKEN)).status_code == 200
                assert client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    finally:
        database.cleanup()


def test_prometheus_takes_its_configuration() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: it comes with Prometheus")
    path = ROOT / "dashboards" / "provisioning" / "prometheus.yml"
    done = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    configuration = yaml.safe_load(path.read_text())
    service, guard = configuration["scrape_configs"]
    token = service["authorization"]["credentials_file"]
    assert token.removeprefix("/run/secrets/") in SERVICES["prometheus"]["secrets"]
    (peer,) = configuration["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert peer.split(":")[0] in SERVICES
    for job, name, port in ((service, "service", "8080"), (guard, "guard", "9109")):
        (found,) = job["dns_sd_configs"]
        assert (found["names"], str(found["port"])) == ([name], port)
        assert port in json.dumps([SERVICES[name]["command"], SERVICES[name].get("environment")])


def test_alertmanager_takes_its_configuration_and_pages_for_a_divergence() -> None:
    if shutil.which("amtool") is None:
        pytest.skip("amtool is not installed: it comes with Alertmanager")
    path = ROOT / "dashboards" / "provisioning" / "alertmanager.yml"
    subprocess.run(["amtool", "check-config", str(path)], check=True, capture_output=True)
    route = ["amtool", "config", "routes", "test", f"--config.file={path}", "product=lossguard"]
    for severity, receiver in (("critical", "pager"), ("warning", "team")):
        done = subprocess.run([*route, f"severity={severity}"], check=True, capture_output=True, text=True)
        assert done.stdout.strip() == receiver


def test_grafana_finds_the_data_source_that_the_files_name() -> None:
    provisioning = ROOT / "dashboards" / "provisioning" / "grafana"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    alerting = yaml.safe_load((FOLDER / "grafana" / "provisioning" / "alerting" / "lossguard.yml").read_text())
    used = {data["datasourceUid"] for group in alerting["groups"] for rule in group["rules"] for data in rule["data"]}
    assert used == {source["uid"], "__expr__"}
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "lossguard.yml").read_text())["providers"]
    mounted = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (FOLDER / "grafana" / "dashboards" / home.name).is_file()


def test_the_trainer_of_the_demo_profile_gets_a_specification_that_it_understands() -> None:
    train = pytest.importorskip("lossguard.demo.train")
    spec = train.Spec.loads(COMPOSE["configs"]["train"]["content"])
    mounted = [volume.split(":")[1] for volume in SERVICES["trainer"]["volumes"]]
    assert {spec.journal, str(Path(spec.export).parent)} == set(mounted)
    assert json.loads(spec.dumps())["run"] == "plain"


def lossguard(name: str, *more: str) -> list[str]:
    """The container's `lossguard` command, run by this Python."""
    program, *arguments = SERVICES[name]["command"]
    assert program == "lossguard"
    return [sys.executable, "-c", "from lossguard.cli.main import main; main()", *arguments, *more]


def test_the_sidecar_of_the_demo_profile_knows_its_service(tmp_path: Path) -> None:
    command = [str(tmp_path) if word == "/journal" else word for word in lossguard("sidecar", "--once")]
    filled = environment("sidecar", LOSSGUARD_SERVICE="http://127.0.0.1:9")
    done = subprocess.run(command, env=filled, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all that is sealed is shipped" in done.stderr


def test_the_guard_tells_prometheus_of_a_version_that_nobody_judged(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "saved_model.pb").write_bytes(b"weights")
    places = {"/serving": str(tmp_path), "0.0.0.0:9109": "127.0.0.1:0"}
    command = [places.get(word, word) for word in lossguard("guard")]
    filled = environment("guard", LOSSGUARD_GATE_KEY=f"ed25519:{base64.b64encode(public).decode()}")
    with running(command, env=filled, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "Prometheus finds this guard at" in line
        # The first look comes before its page has a line.
        assert "version 7: " in process.stderr.readline()
        deadline = time.monotonic() + 200
        while 'version="7",moved="true"} 1' not in httpx.get(line.split()[-1], timeout=60).text:
            assert time.monotonic() < deadline
    assert not (tmp_path / "7").exists()
