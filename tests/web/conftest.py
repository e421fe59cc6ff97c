"""A real service on loopback with runs in it, and a real Chromium."""

import os
import shutil
from collections.abc import Iterator

import pytest
from pages_service import NASTY, NASTY_LAYER, TASKS, Service, ranker, serve
from playwright.sync_api import Browser, expect, sync_playwright

PATIENCE = 60_000
"""Milliseconds: a busy machine is no failure."""
expect.set_options(timeout=PATIENCE)
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service over SQLite: one run collapsed and was blocked, one is healthy, one has NaN, one nasty names."""
    for running in serve(tmp_path_factory.mktemp("service")):
        running.send("ranker", "plain", ranker(collapse=220, batches=True), config=TASKS, checkpoints=(100, 200, 300))
        running.send("ranker", "clippy", ranker(), config=TASKS)
        running.send("ranker", "poisoned", ranker(nan=200), config=TASKS)
        running.send(NASTY, NASTY, ranker(40, layers=(NASTY_LAYER,), task=NASTY_LAYER), config={NASTY: NASTY_LAYER})
        running.judge("ranker", "plain", 320)
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    path = os.environ.get("LOSSGUARD_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: install it, or set LOSSGUARD_CHROMIUM to the program")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS, timeout=2 * PATIENCE)
        yield chromium
        chromium.close()
