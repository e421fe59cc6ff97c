"""/metrics: clean by promtool, only names of the list, the run's state as it is, nothing of finished runs."""

import math
import shutil
import subprocess
from collections.abc import Iterable

import pytest
from chunk_trainer import chunks, frames
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from services import Clock, Service, run, service

from lossguard_service.app import GOODBYE_SECONDS
from lossguard_service.metrics import names


async def scrape(one: Service) -> str:
    answer = await one.client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return answer.text


def value(text: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return None


def test_a_diverging_run_shows_and_a_finished_one_leaves(database_url: str, clock: Clock) -> None:
    async def story() -> None:
        async with service(database_url, clock) as one:
            for chunk in chunks(frames(1, 400, diverges_at=220), run="sick"):
                await one.put(chunk)
            for chunk in chunks(frames(1, 64, nan_at=60), run="well", stop="finished"):
                await one.put(chunk)
            text = await scrape(one)
            assert value(text, "lossguard_run_status", run="sick", status="diverged") == 1
            assert value(text, "lossguard_run_status", run="sick", status="healthy") == 0
            assert value(text, "lossguard_run_last_step", project="video", run="sick") == 400
            assert (
                value(text, "lossguard_run_open_incidents", run="sick", kind="full_divergence", severity="critical")
                == 1
            )
            assert value(text, "lossguard_run_steps_per_second", run="sick") == pytest.approx(10.0)
            assert value(text, "lossguard_run_clipping_ratio_max", run="sick") == pytest.approx(0.4)
            assert value(text, "lossguard_run_layer_clipping_ratio", run="sick", layer="heads/click/kernel") is not None
            assert math.isnan(value(text, "lossguard_run_loss", run="well") or 0.0)
            assert value(text, "lossguard_run_frames_total", run="well") == 64
            clock.now += GOODBYE_SECONDS + 1
            text = await scrape(one)
            assert value(text, "lossguard_run_last_step", run="well") is None
            assert value(text, "lossguard_run_stalled", run="sick") == 1

    run(story())


def _families(text: str) -> Iterable[Metric]:
    return text_string_to_metric_families(text)


def test_the_page_holds_names_of_the_list_only_and_promtool_likes_it(sqlite_url: str, clock: Clock) -> None:
    async def story() -> str:
        async with service(sqlite_url, clock) as one:
            for chunk in chunks(frames(1, 400, diverges_at=220), run='odd "name"'):
                assert (await one.put(chunk)).status_code == 200
            return await scrape(one)

    text = run(story())
    known = {metric.name.removesuffix("_total") for metric in names.ALL}
    found = {family.name for family in _families(text)}
    assert found - {name + "_created" for name in known} <= known
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: it comes with Prometheus")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_a_client_cannot_make_new_series(sqlite_url: str, clock: Clock) -> None:
    async def story() -> str:
        async with service(sqlite_url, clock) as one:
            for number in range(20):
                await one.client.get(f"/nothing/{number}")
                await one.client.request(f"ODD{number}", "/v1/runs")
            return await scrape(one)

    text = run(story())
    routes = {s.labels["route"] for family in _families(text) for s in family.samples if "route" in s.labels}
    assert routes <= {"none", "/v1/runs"}
