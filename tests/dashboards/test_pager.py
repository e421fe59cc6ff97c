"""From a diverging run to the pager: service, Prometheus and Alertmanager as docker-compose.yml starts them.

The commands, rules and configuration files are those of the containers; only addresses, folders and intervals differ.
"""

import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import yaml
from dashboards.__main__ import FOLDER
from test_compose import ROOT, SERVICES, TOKEN, running

from free_ports import free_port

sys.path.append(str(ROOT / "tests" / "web"))
PROVISIONING = ROOT / "dashboards" / "provisioning"


def program(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed")
    return found


def flags(name: str, **values: str) -> list[str]:
    """The container's flags with other values; every one that is given must be there."""
    words = [word.partition("=") for word in SERVICES[name]["command"]]
    assert values.keys() <= {flag.strip("-").replace(".", "_").replace("-", "_") for flag, _, _ in words}
    return [
        f"{flag}={values.get(flag.strip('-').replace('.', '_').replace('-', '_'), value)}" for flag, _, value in words
    ]


@pytest.fixture(scope="module")
def pager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Alertmanager's API, at the end of the chain."""
    from pages_service import TASKS, ranker, serve

    prometheus, alertmanager = program("prometheus"), program("alertmanager", "prometheus-alertmanager")
    folder = tmp_path_factory.mktemp("pager")
    ports = free_port(), free_port()
    configuration: dict[str, Any] = yaml.safe_load((PROVISIONING / "prometheus.yml").read_text())
    configuration["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [
        path.replace("/etc/prometheus/rules", str(FOLDER / "prometheus")) for path in configuration["rule_files"]
    ]
    configuration["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{ports[1]}"]
    (folder / "token").write_text(TOKEN)
    with ExitStack() as stack:
        for service in serve(folder, admin_token=TOKEN):
            job = configuration["scrape_configs"][0]
            del job["dns_sd_configs"]
            job["static_configs"] = [{"targets": [service.url.removeprefix("http://")]}]
            job["authorization"]["credentials_file"] = str(folder / "token")
            configuration["scrape_configs"] = [job]
            (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
            service.client.headers["authorization"] = f"Bearer {TOKEN}"
            service.send("ranker", "plain", ranker(collapse=220, batches=True), config=TASKS, stop=False)
            alerts = {"config_file": str(PROVISIONING / "alertmanager.yml"), "storage_path": str(folder / "alerts")}
            metrics = {"config_file": str(folder / "prometheus.yml"), "storage_tsdb_path": str(folder / "tsdb")}
            for binary, name, files, port, more in (
                (alertmanager, "alertmanager", alerts, ports[1], ["--cluster.listen-address="]),
                (prometheus, "prometheus", metrics, ports[0], []),
            ):
                listens = [f"--web.listen-address=127.0.0.1:{port}", *more, "--log.level=error"]
                stack.enter_context(running([binary, *flags(name, **files), *listens]))
            with httpx.Client(base_url=f"http://127.0.0.1:{ports[1]}", timeout=60) as client:
                yield client
            stack.close()


def test_a_full_divergence_reaches_the_pager_with_what_and_where(pager: httpx.Client) -> None:
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 240
    while not found:
        assert time.monotonic() < deadline, "no alert came"
        try:
            answer = pager.get("/api/v2/alerts", params={"filter": 'alertname="LossguardFullDivergence"'})
        except httpx.TransportError:
            continue
        found = answer.json() if answer.status_code == 200 else []
    (alert,) = found
    assert [one["name"] for one in alert["receivers"]] == ["pager"]
    assert alert["status"]["state"] == "active"
    assert alert["annotations"]["summary"].startswith("ranker/plain diverged at step 2")
    told = alert["annotations"]["description"]
    assert re.search(r"bad\. Batches: step \d+: 700002\d\d, .*\(onset\)\.$", told), told
    assert alert["annotations"]["runbook_url"] == "http://localhost:8080/runbooks/LossguardFullDivergence"
