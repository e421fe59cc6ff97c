"""The pages of a run of a million steps in a real Chromium: how soon they are drawn, and what they weigh.

    python benchmarks/pages.py [--steps 1000000] [--layers 24] [--rounds 5] [--keep DIR] [--json FILE]

A run is made over HTTP, with four tasks and a divergence, compacted as the service does it by itself, and served by a
real service process. Each page is opened in a fresh browser context, so that nothing is cached, and once more in the
same one, in a window of 1280 x 900. Times are the browser's own, from the start of the navigation; medians:

- first paint: the first contentful paint, with everything that does not need JavaScript.
- all charts: every chart and the heat map stand with their data, those below the window too.
- plotly.js has taken over: the charts in the window can be hovered and zoomed with the mouse.

Weight is what goes over the wire, compressed. The target is all charts of the run's page, nothing cached, in 1.5 s.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
from playwright.sync_api import Page, sync_playwright

from ingest import service
from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, Chunk, ChunkId, encode
from lossguard.wire.frame import Frames, Schema
from lossguard_service.store.compact import compact
from lossguard_service.store.database import open_database

MOST_SECONDS = 1.5
PROJECT, RUN, OTHER = "bench", "million", "shorter"
TASKS = ("click", "like", "share", "finish")
STATS = ("weight_norm", "gradient_norm", "update_norm", "clippy_ratio")
CHUNK = 512


def chunks(steps: int, layers: int, run: str) -> Iterator[Chunk]:
    """A run that learns, has a hiccup at three quarters, and goes on."""
    random = np.random.default_rng(7)
    names = ["loss", "learning_rate"]
    names += [f"{kind}/{task}" for kind in ("loss", "label_mean", "batch_auc", "prediction_std") for task in TASKS]
    schema = Schema(tuple(names), tuple(f"tower/block_{n}/dense/kernel" for n in range(layers)), STATS)
    hiccup = steps * 3 // 4
    for index, start in enumerate(range(0, steps, CHUNK)):
        at = np.arange(start + 1, min(steps, start + CHUNK) + 1)
        noise = random.normal(size=(len(at), len(names)))
        learned = 1 - np.exp(-at / (steps / 8))
        ill = np.where((at >= hiccup) & (at < hiccup + 30), 1.0, 0.0)
        means = np.array([0.44, 0.2, 0.08, 0.31])
        base = -(means * np.log(means) + (1 - means) * np.log1p(-means))
        losses = base * (1 - 0.1 * learned[:, None] + 3 * ill[:, None] + 0.01 * noise[:, 2:6])
        auc = 0.5 + (0.2 * learned * (1 - ill))[:, None] + 0.01 * noise[:, 6:10]
        spread = 0.1 * learned[:, None] * np.exp(0.05 * noise[:, 10:14])
        columns = [losses.sum(axis=1, keepdims=True), np.full((len(at), 1), 0.1), losses]
        scalars = np.concatenate([*columns, np.tile(means, (len(at), 1)), auc, spread], axis=1)
        stats = np.exp(random.normal(0, 0.2, (len(at), layers, len(STATS)))).astype(np.float32)
        stats[ill > 0] *= 1000
        frames = Frames.of(schema, at, scalars, stats, times=1.7e9 + 0.1 * at)
        events: list[AttemptStart | AttemptStop | Checkpoint] = []
        if index == 0:
            events.append(AttemptStart(0, 1.7e9, {"tasks": dict.fromkeys(TASKS, "binary"), "optimizer": "Adagrad"}))
        if index % 200 == 199:
            events.append(Checkpoint(int(at[-1]), 1.7e9, f"checkpoints/{at[-1]}", has_slots=True))
        if at[-1] == steps:
            events.append(AttemptStop(steps, 1.7e9, "finished"))
        yield Chunk(ChunkId(PROJECT, run, "a" * 32, index), frames, {}, tuple(events))


def fill(address: str, steps: int, layers: int) -> None:
    """Two runs over HTTP: the long one, and a short one to compare it with."""
    with httpx.Client(base_url=address, timeout=60) as client:
        for run, length in ((RUN, steps), (OTHER, max(CHUNK, steps // 10))):
            for chunk in chunks(length, layers, run):
                path = f"/v1/projects/{PROJECT}/runs/{run}/attempts/{'a' * 32}/chunks/{chunk.id.index}"
                client.put(path, content=encode(chunk)).raise_for_status()
                if chunk.id.index % 400 == 0:
                    print(f"{run}: {chunk.frames.steps[-1]:,} steps sent", file=sys.stderr)


async def pack(url: str) -> None:
    """Chunks into segments, as the service does by itself while a run trains."""
    database = open_database(url)
    while await compact(database, now=time.time()):
        pass
    await database.close()


def visit(page: Page, address: str) -> dict[str, float]:
    """One visit: seconds from the start of the navigation, and bytes on the wire."""
    page.goto(address)
    charts = page.locator("#tracks").count() > 0
    if charts:
        page.wait_for_selector("#tracks[data-drawn=full]")
    # On a busy machine a small page has loaded before it is painted.
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
    found: dict[str, float] = page.evaluate(
        """() => {
          const all = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')];
          const weigh = (chosen) => chosen.reduce((sum, one) => sum + one.transferSize, 0);
          const paint = performance.getEntriesByName('first-contentful-paint')[0];
          const drawn = performance.getEntriesByName('lossguard:drawn')[0];
          const plotly = all.filter((one) => one.name.endsWith('/plotly.js'));
          return { paint: paint.startTime / 1000, ...(drawn ? { drawn: drawn.startTime / 1000 } : {}),
                   bytes: weigh(all) - weigh(plotly), plotly: weigh(plotly) };
        }"""
    )
    if charts:
        found["plotly_seconds"] = page.evaluate("performance.now()") / 1000
    return found


def measure(address: str, rounds: int, chromium: str) -> dict[str, dict[str, float]]:
    """Medians of each page's visits, with nothing cached and again."""
    run = f"/runs/{PROJECT}/{RUN}"
    compared = f"/compare?run={PROJECT}/{RUN}&run={PROJECT}/{OTHER}"
    places = {"runs": "/", "run": run, "incident": f"{run}/incidents/1", "layers": f"{run}/layers", "compare": compared}
    visits: dict[str, list[dict[str, float]]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(rounds):
            for name, place in places.items():
                context = browser.new_context(viewport={"width": 1280, "height": 900})
                for kind in ("nothing cached", "again"):
                    page = context.new_page()
                    page.set_default_timeout(120_000)
                    visits.setdefault(f"{name}, {kind}", []).append(visit(page, address + place))
                    page.close()
                context.close()
        browser.close()
    return {name: {key: statistics.median(one[key] for one in all) for key in all[0]} for name, all in visits.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="a folder whose database is made once and used again")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chromium = os.environ.get("LOSSGUARD_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium: install it, or set LOSSGUARD_CHROMIUM to the program")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{folder}/pages.db"
        if not (folder / "pages.db").exists():
            with service(url) as (address, _pid):
                fill(address, options.steps, options.layers)
            asyncio.run(pack(url))
        with service(url) as (address, _pid):
            table = measure(address, options.rounds, chromium)
    print(f"{options.steps:,} steps, {options.layers} layers, {options.rounds} rounds, load {os.getloadavg()[0]:.1f}\n")
    print("| page | first paint, s | all charts, s | plotly.js has taken over, s | KB on the wire | plotly.js, KB |")
    print("|---|---|---|---|---|---|")
    for name, row in table.items():
        cells = [f"{row[key]:.2f}" if key in row else "" for key in ("paint", "drawn", "plotly_seconds")]
        print(f"| {name} | {' | '.join(cells)} | {row['bytes'] / 1000:,.0f} | {row['plotly'] / 1000:,.0f} |")
    seconds = table["run, nothing cached"]["drawn"]
    answer = "met" if seconds < MOST_SECONDS else "MISSED"
    print(f"\ntarget: all charts of the run's page within {MOST_SECONDS} s: {answer}")
    if options.json is not None:
        options.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
