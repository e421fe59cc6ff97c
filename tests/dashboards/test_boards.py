"""Dashboards: every query returns data from a real Prometheus that scrapes a real service with a diverging run."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from dashboards.boards import BOARDS, Board, expressions
from dashboards.panels import build
from grafana_foundation_sdk.models.dashboard import Dashboard

from free_ports import free_port
from lossguard.wire.chunk import Chunk, ChunkId, encode
from lossguard_service.metrics import names

ATTEMPT = f"/v1/projects/ranker/runs/plain/attempts/{'a' * 32}"
ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "web"))


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus with our configuration, scraping a service in which one run diverged and was refused by the gate."""
    from pages_service import TASKS, ranker, serve

    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    # Nobody listens there, so that notices wait.
    for service in serve(folder, webhook_urls="http://127.0.0.1:9/", webhook_seconds=0.2):
        service.send("ranker", "plain", ranker(collapse=220), config=TASKS, stop=False)
        service.send("ranker", "clippy", ranker(), config=TASKS, stop=False)
        lost = Chunk(ChunkId("ranker", "plain", "a" * 32, 5), ranker()[:0], {"queue_full": 3})
        service.client.put(f"{ATTEMPT}/chunks/5", content=encode(lost)).raise_for_status()
        service.judge("ranker", "plain", 320)
        configuration = yaml.safe_load((ROOT / "dashboards" / "provisioning" / "prometheus.yml").read_text())
        configuration["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        configuration["rule_files"] = [str(ROOT / "dashboards" / "generated" / "prometheus" / "*.rules.yml")]
        configuration["alerting"] = {}
        job = next(one for one in configuration["scrape_configs"] if one["job_name"] == "lossguard")
        del job["dns_sd_configs"], job["authorization"]
        configuration["scrape_configs"] = [job]
        job["static_configs"] = [{"targets": [service.url.removeprefix("http://")]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        port = free_port()
        with subprocess.Popen(
            [
                program,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/tsdb",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=error",
            ]
        ) as process:
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                    yield client
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait()


def until(client: httpx.Client, path: str, parameters: dict[str, str], wanted: str) -> list[dict[str, object]]:
    """The answer's `data`, asked again until something is in it: scrapes come when they come."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        try:
            answer = client.get(path, params=parameters)
        except httpx.TransportError:
            continue
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 200:
            found: list[dict[str, object]] = answer.json()["data"][wanted]
            if found:
                return found
    raise AssertionError(f"no data for {parameters}")


def filled(expression: str) -> str:
    for variable, value in {"$project": "ranker", "$run": "plain", "$__rate_interval": "1m"}.items():
        expression = expression.replace(variable, value)
    return expression


@pytest.mark.parametrize(("where", "expression"), expressions(), ids=[where for where, _ in expressions()])
def test_every_query_returns_data(prometheus: httpx.Client, where: str, expression: str) -> None:
    assert until(prometheus, "/api/v1/query", {"query": filled(expression)}, "result")


def test_the_divergence_is_an_alert_that_names_task_and_step(prometheus: httpx.Client) -> None:
    found = until(prometheus, "/api/v1/alerts", {}, "alerts")
    deadline = time.monotonic() + 240
    while not {"LossguardFullDivergence", "LossguardGateBlocked"} <= {one["labels"]["alertname"] for one in found}:
        assert time.monotonic() < deadline, found
        found = prometheus.get("/api/v1/alerts").json()["data"]["alerts"]
    one = next(one for one in found if one["labels"]["alertname"] == "LossguardFullDivergence")
    assert re.match(
        r"ranker/plain diverged at step 2[12]\d and did not recover: task \w+ first", one["annotations"]["summary"]
    )
    assert one["annotations"]["dashboard_url"] == "http://localhost:8080/runs/ranker/plain"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_grafana_can_read_the_dashboard(board: Board) -> None:
    document = json.loads(build(board))
    parsed = Dashboard.from_json(document)
    assert parsed.title == board.title
    assert len(document["panels"]) == len(board.panels)
    places = [tuple(panel["gridPos"][side] for side in "xywh") for panel in document["panels"]]
    assert len({place[:2] for place in places}) == len(places)
    assert all(x + w <= 24 for x, _, w, _ in places)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in document["panels"])


@pytest.mark.parametrize(("where", "expression"), expressions(), ids=[where for where, _ in expressions()])
def test_queries_use_names_of_the_list_only(where: str, expression: str) -> None:
    known = {metric.name for metric in names.ALL}
    used = set(re.findall(r"\b(?:lossguard|process)_\w+", expression))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} <= known
    assert used or "up{" in expression


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_a_board_has_the_variables_that_its_queries_use_and_leads_to_our_pages(board: Board) -> None:
    document = json.loads(build(board))
    variables = {one["name"] for one in document["templating"]["list"]}
    text = json.dumps([document["panels"], document["annotations"], document["links"]])
    used = set(re.findall(r"\$\{?([a-z]\w*)", text)) - {"__rate_interval"}
    assert used <= variables
    assert set(board.variables) <= used
    assert any(link["url"].startswith("${lossguard_url}/") for link in document["links"])
    for panel, made in zip(board.panels, document["panels"], strict=True):
        links = [link["url"] for link in made["fieldConfig"]["defaults"].get("links", [])]
        if panel.leads_to_run:
            assert all("project" in query.expression and "run" in query.expression for query in panel.queries)
            assert [re.sub(r"\$\{[^}]*\.(\w+)\}", r"<\1>", link) for link in links] == [
                "${lossguard_url}/runs/<project>/<run>"
            ]
    titles = {one["name"]: one["titleFormat"] for one in document["annotations"]["list"]}
    assert titles == {"Incidents": "{{kind}}", "Verdicts": "gate: {{outcome}}"}


def test_every_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    from dashboards.alerts import ALERTS

    texts = [text for alert in ALERTS for text in (alert.expression, *alert.annotations().values())]
    text = " ".join([expression for _, expression in expressions()] + texts)
    unseen = {metric.name for metric in names.ALL if metric.name not in text}
    assert unseen == set()
