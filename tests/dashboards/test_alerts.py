"""Alert rules: valid, tested by promtool for firing, resolving and not firing, and each with its runbook."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dashboards.alerts import ALERTS, Alert, Rules

from lossguard_service.metrics import names

ROOT = Path(__file__).resolve().parents[2]
TESTS = Path(__file__).with_name("alerts.test.yml")
RULES = ROOT / "dashboards" / "generated" / "prometheus" / "lossguard.rules.yml"


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: it comes with Prometheus")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_generated_files_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dashboards", "--check"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_prometheus_takes_the_rules() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(RULES))


def test_every_rule_fires_resolves_and_keeps_quiet_as_written() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(TESTS))
    tests = yaml.safe_load(TESTS.read_text())["tests"]
    for alert in ALERTS:
        courses = [
            "".join(
                "F" if case["exp_alerts"] else "."
                for case in test["alert_rule_test"]
                if case["alertname"] == alert.name
            )
            for test in tests
        ]
        assert any(re.search(r"\.F+\.", course) for course in courses), f"{alert.name} is not seen to fire and resolve"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_has_a_runbook_that_says_what_to_do(alert: Alert) -> None:
    page = (ROOT / "docs" / "runbooks" / f"{alert.name}.md").read_text()
    assert page.startswith(f"# {alert.name}: ")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == ["What it says", "What it means", "What to do", "When it ends"]


def test_there_is_no_runbook_without_an_alert() -> None:
    assert {page.stem for page in (ROOT / "docs" / "runbooks").glob("*.md")} == {alert.name for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_alerts_use_names_of_the_list_only(alert: Alert) -> None:
    known = {metric.name for metric in names.ALL}
    used = set(re.findall(r"\blossguard_\w+", alert.expression))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} <= known
    assert used or "up{" in alert.expression


def test_grafana_gets_the_same_rules() -> None:
    (group,) = Rules().grafana()["groups"]
    assert [rule["title"] for rule in group["rules"]] == [alert.name for alert in ALERTS]
    for rule, alert in zip(group["rules"], ALERTS, strict=True):
        assert rule["data"][0]["model"]["expr"] == alert.expression
        assert len(rule["uid"]) <= 40
        assert "externalLabels" not in str(rule)
        assert "query" not in str(rule["annotations"])


@pytest.mark.parametrize("alert", [alert for alert in ALERTS if alert.about_run], ids=lambda alert: alert.name)
def test_every_alert_about_a_run_names_it_its_step_and_where_known_task_and_layer(alert: Alert) -> None:
    summary = alert.annotations()["summary"]
    assert "{{ $labels.project }}/{{ $labels.run }}" in summary
    assert "$value" in summary
    assert re.search(r"abels\.task }}.*abels\.layer }}", summary)
    assert alert.annotations()["runbook_url"].endswith(f"/runbooks/{alert.name}")
    assert alert.labels()["severity"] in ("critical", "warning")
