"""The main job, end to end: `lossguard demo` with its real parts, on real data and on the generated stream."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from free_ports import free_port
from lossguard.gate.digest import artifact_digest
from lossguard.gate.signature import read_keys
from lossguard.gate.verify import verify

pytestmark = [pytest.mark.e2e, pytest.mark.tensorflow, pytest.mark.timeout(600)]

STEPS = 520
DOWN_SECONDS = 20.0
KEYS = {"name", "status", "onset_step", "detected_step", "metrics", "verdict", "reasons", "published"}


class Demo:
    """A demo in a folder of its own, as a user starts it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.log = folder / "said.txt"
        command = [sys.executable, "-m", "lossguard", "demo", "--json", "out.json", *arguments]
        with self.log.open("w") as said:
            self.process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)

    def state(self) -> dict[str, Any]:
        """What the demo says about itself while it runs."""
        try:
            found: dict[str, Any] = json.loads((self.folder / ".lossguard" / "demo.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def wait(self, claim: Callable[[], bool], seconds: float = 400.0) -> None:
        """Until the claim holds; a demo that ended before fails the test with what it said."""
        end = time.monotonic() + seconds
        while not claim():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            threading.Event().wait(0.05)

    def reached(self, word: str, step: int) -> bool:
        """Whether the training of that word has come so far."""
        state = self.state()
        return str(state.get("run", "")).startswith(word) and int(state.get("step", 0)) >= step

    @property
    def result(self) -> Path:
        """The document for programs."""
        return self.folder / "out.json"

    def runs(self) -> list[dict[str, Any]]:
        """Its runs."""
        found: list[dict[str, Any]] = json.loads(self.result.read_text())["runs"]
        return found

    def end(self) -> int:
        """Ctrl-C, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(120)
        finally:
            self.process.kill()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _must_be_as_promised(folder: Path, plain: dict[str, Any], clippy: dict[str, Any]) -> None:
    assert set(plain) >= KEYS
    assert (plain["status"], plain["verdict"], plain["published"]) == ("diverged", "block", None)
    assert 100 < plain["onset_step"] <= plain["detected_step"] < 400
    assert plain["metrics"]["auc/click"] < 0.58
    words = " ".join(plain["reasons"])
    assert "click" in words
    assert f"step {plain['onset_step']}" in words
    assert "Go back to a checkpoint" in words

    assert clippy["status"] in ("healthy", "recovered")
    assert (clippy["verdict"], clippy["reasons"]) == ("pass", [])
    assert clippy["metrics"]["auc/click"] > 0.64
    published = folder / clippy["published"]
    assert published.parent == folder / "serving" / "ranker"
    assert (published / "saved_model.pb").is_file()
    assert (published / "variables" / "variables.index").is_file()
    # Nothing but whole versions: no staging folder is left where TensorFlow Serving looks.
    assert all(entry.name.isdigit() for entry in published.parent.iterdir())
    assert artifact_digest(published).startswith("sha256:")
    verify(published, read_keys([folder / ".lossguard" / "gate.pub"]))


def _must_hold_every_step_once(url: str, run: str) -> None:
    with httpx.Client(base_url=f"{url}/v1/projects/demo/runs", timeout=30) as client:
        found = client.get(run).json()
        assert found["frames"] == STEPS
        assert (found["gaps"], found["dropped_frames"], found["waiting_chunks"]) == ([], 0, 0)
        assert [attempt["stop_reason"] for attempt in found["attempts"]] == ["finished"]
        series = client.get(f"{run}/series", params={"name": "loss", "points": 20_000}).json()
        assert np.array_equal(series["first"], np.arange(1, STEPS + 1))
        assert series["count"] == [1] * STEPS


def test_real_data_with_the_sidecar_killed_and_the_service_down(shared: Path, tmp_path: Path) -> None:
    chromium = os.environ.get("LOSSGUARD_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: install it, or set LOSSGUARD_CHROMIUM to the program")
    data = str(shared / "data" / "kuairand")
    # A port that nobody else is given while the service is down.
    demo = Demo(tmp_path, "--data", data, "--restart-seconds", str(DOWN_SECONDS), "--port", str(free_port()))
    try:
        demo.wait(lambda: demo.reached("plain", 100))
        os.kill(demo.state()["pids"]["sidecar"], signal.SIGKILL)
        demo.wait(lambda: demo.reached("clippy", 100))
        os.kill(demo.state()["pids"]["service"], signal.SIGKILL)
        demo.wait(demo.result.exists)
        said = demo.log.read_text()
        for name in ("sidecar", "service"):
            assert f"the {name} ended (killed by SIGKILL)" in said
            assert f"the {name} is back" in said

        plain, clippy = demo.runs()
        _must_be_as_promised(tmp_path, plain, clippy)
        state = demo.state()
        for run in (plain, clippy):
            _must_hold_every_step_once(state["service"], run["name"])
        assert not list((tmp_path / ".lossguard" / "journal").rglob("*.chunk")), "the service refused a chunk"
        with ThreadPoolExecutor(1) as thread:  # Playwright of another test may keep an event loop in this one
            thread.submit(_must_be_on_the_page, chromium, state["service"], plain, clippy).result()
    finally:
        code = demo.end()
    assert code == 130
    assert not any(_alive(pid) for pid in state["pids"].values())
    assert not (tmp_path / ".lossguard" / "demo.json").exists()


def _must_be_on_the_page(chromium: str, url: str, plain: dict[str, Any], clippy: dict[str, Any]) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"], timeout=120_000
        )
        page = browser.new_page(base_url=url)
        page.set_default_timeout(60_000)
        page.goto("/")
        for run in (plain, clippy):
            expect(page.get_by_role("link", name=run["name"]).first).to_be_visible(timeout=60_000)
        page.goto(plain["page"])
        page.wait_for_selector("#tracks[data-drawn]")
        expect(page.locator("body")).to_contain_text("diverged", timeout=60_000)
        browser.close()


def test_the_generated_stream_takes_the_same_path_to_the_same_verdicts_beside_an_earlier_demo(tmp_path: Path) -> None:
    (tmp_path / ".lossguard" / "journal" / "demo" / "plain-1").mkdir(parents=True)
    (tmp_path / "serving" / "ranker" / "1" / "variables").mkdir(parents=True)
    demo = Demo(tmp_path, "--exit", "--seed", "1")
    try:
        assert demo.process.wait(500) == 0, demo.log.read_text()
    finally:
        demo.end()
    plain, clippy = demo.runs()
    _must_be_as_promised(tmp_path, plain, clippy)
    assert (plain["name"], clippy["name"]) == ("plain-2", "clippy-2")
    assert clippy["published"] == "serving/ranker/2"
    said = demo.log.read_text()
    assert "passed" in said
    assert "is not published (block)" in said
