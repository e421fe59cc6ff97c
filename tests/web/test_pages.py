"""The pages over HTTP: what they say, what they escape, and which headers they carry."""

import gzip
import re
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from pages_service import NASTY, NASTY_LAYER, Service, ranker, serve


def test_an_empty_service_says_how_to_begin(tmp_path: Path) -> None:
    for service in serve(tmp_path):
        page = service.client.get("/").text
        assert "No run yet: add two lines to your trainer" in page
        assert f'service="{service.url}"' in page


def test_the_list_tells_state_incident_and_verdict(service: Service) -> None:
    page = service.client.get("/", params={"project": "ranker"}).text
    row = re.search(r'<tr class="is-diverged">.*?plain.*?</tr>', page, re.DOTALL)
    assert row is not None
    assert "Full divergence" in row[0]
    assert "Block" in row[0]
    assert "<polyline" in row[0]


def test_the_list_is_filtered_and_searched_without_javascript(service: Service) -> None:
    page = service.client.get("/", params={"q": "CLIP"}).text
    assert ">clippy</a>" in page
    assert ">plain</a>" not in page
    assert "No run matches" in service.client.get("/", params={"q": "nothing is called so"}).text


def test_the_page_of_a_diverged_run_alone_says_what_broke(service: Service) -> None:
    page = service.client.get("/runs/ranker/plain").text
    title = re.search(r'id="headline-title">(.*?)</h2>', page)
    assert title is not None
    assert re.search(r"diverged at step 2[12]\d", title[1])
    for words in ("Broke first", "Moved first", "What to do", "Roll back", "checkpoints/plain/200", "The gate judged"):
        assert words in page, words


def test_the_page_of_an_incident_tells_it_in_order(service: Service) -> None:
    page = service.client.get("/runs/ranker/plain/incidents/1").text
    steps = [int(step.replace(",", "")) for step in re.findall(r'class="at num">step ([\d,]+)<', page)]
    assert len(steps) >= 4
    assert steps == sorted(steps)
    rows = re.findall(
        r'c-who">(?:<code>)?([^<]+)<.*?Left at step">(\d+)<.*?How far">([^<]+)<(.*?)</tr>', page, re.DOTALL
    )
    assert [(name, int(step)) for name, step, _, _ in rows][:2] == [("shared0/kernel", 218), ("total loss", 220)]
    assert {name for name, *_ in rows} >= {"click", "play", "shared1/kernel"}
    assert all(height.endswith(" scales") for _, _, height, _ in rows)
    assert all('class="onset"' in rest and "<polyline" in rest for *_, rest in rows)
    course = re.search(r"clippy_ratio: ([\d.]+), then up to ([\d.e]+)", rows[0][3])
    assert course is not None
    assert 0.5 < float(course[1]) < 2
    assert float(course[2]) > 1e5
    batches = re.findall(r'under">step (\d+)([^<]*)</span><code>(\d+)<', page)
    assert batches == [
        (str(step), note, str(70_000_000 + step))
        for step, note in zip(range(217, 222), ("", ", first signal", "", ", onset", ""), strict=True)
    ]


def test_the_run_tells_each_incident_in_order_with_its_batches_and_what_to_do(service: Service) -> None:
    page = service.client.get("/runs/ranker/plain").text
    told = re.search(r'<details class="verdict incident[^>]* id="incident-1">(.*?)</details>', page, re.DOTALL)
    assert told is not None
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", told[1]))
    places = [
        text.index(words) for words in ("First signal", "Onset", "Worst value", "Batches.", "What to do.", "Runbook")
    ]
    assert places == sorted(places)
    assert "step 220: 70000220 (onset)" in text


@pytest.mark.parametrize(
    "path", ["/runs/ranker/nobody", "/runs/ranker/plain/incidents/77", "/runs/no/plain/incidents/1"]
)
def test_what_is_not_there_is_a_page_with_a_sentence(service: Service, path: str) -> None:
    answer = service.client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "All runs" in answer.text


def test_names_from_outside_are_escaped_everywhere(service: Service) -> None:
    run = f"/runs/{quote(NASTY, safe='')}/{quote(NASTY, safe='')}"
    for path in ("/", f"/?q={quote(NASTY)}&project={quote(NASTY)}", run, f"/runs/{quote(NASTY, safe='')}/x"):
        answer = service.client.get(path)
        assert "<script>alert" not in answer.text, path
        assert "49" not in re.findall(r"&amp;(\S+?)<", answer.text), path
        assert "&lt;script&gt;" in answer.text or path.endswith("/x"), path
    answer = service.client.get(f"{run}/charts.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert NASTY_LAYER in str(answer.json())


@pytest.mark.parametrize("path", ["/", "/runs/ranker/plain", "/runs/ranker/plain/incidents/1", "/runs/ranker/nobody"])
def test_pages_allow_nothing_inline_and_nothing_from_elsewhere(service: Service, path: str) -> None:
    answer = service.client.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert not re.search(r"<[^>]+\sstyle=|<style|\son[a-z]+=|https?://(?!127)", answer.text)
    for script in re.findall(r"<script[^>]*>", answer.text):
        assert "src=" in script or 'type="application/json"' in script


def test_static_files_are_compressed_and_kept_for_ever(service: Service) -> None:
    page = service.client.get("/runs/ranker/plain").text
    paths = set(re.findall(r'(?:src|href|data-plotly)="(/static/[^"]+)"', page))
    names = {path.rpartition("/")[2] for path in paths}
    assert {"page.css", "charts.css", "charts.js", "sketch.js", "live.js", "policy.js", "plotly.js"} <= names
    for path in paths:
        answer = service.client.get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-encoding"] == "gzip"
        again = service.client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304
        assert again.content == b""
        plain = service.client.get(path, headers={"accept-encoding": "identity"})
        assert plain.content == answer.content
        assert "content-encoding" not in plain.headers


def test_every_script_that_another_imports_is_there_and_fetched_early(service: Service) -> None:
    page = service.client.get("/runs/ranker/plain").text
    early = set(re.findall(r'rel="modulepreload" href="([^"]+)"', page))
    for path in early:
        for name in re.findall(r'from "./(\w+\.js)"', service.client.get(path).text):
            assert f"{path.rpartition('/')[0]}/{name}" in early


def test_a_static_address_of_another_version_is_refused(service: Service) -> None:
    assert service.client.get(f"/static/{'0' * 32}/page.css").status_code == 404
    assert service.client.get(f"/static/{'0' * 32}/..%2Fpages.py").status_code == 404


def test_the_weight_of_a_page(service: Service) -> None:
    """Everything but plotly.js, which is fetched once, fits into 60 KB on the wire."""
    page = service.client.get("/runs/ranker/plain").text
    own = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page))
    assert not any("plotly" in path for path in own)
    total = sum(wire_size(service, path) for path in own) + len(gzip.compress(page.encode()))
    assert total < 60_000


def wire_size(service: Service, path: str) -> int:
    with service.client.stream("GET", path) as answer:
        return sum(map(len, answer.iter_raw()))


def test_chart_data_are_normalized_and_keep_what_is_not_finite(service: Service) -> None:
    charts = {one["id"]: one for one in service.client.get("/runs/ranker/poisoned/charts.json").json()["charts"]}
    assert [line["label"] for line in charts["entropy"]["lines"]] == ["click"]
    assert charts["entropy"]["lines"][0]["mean"][-1] == pytest.approx(0.93, abs=0.03)
    play = next(line for line in charts["loss"]["lines"] if line["label"] == "play")
    assert play["mean"][199:202] == ["NaN"] * 3
    assert play["nonfinite"][199:202] == [1] * 3


def test_a_range_of_steps_is_all_that_is_sent(service: Service) -> None:
    answer = service.client.get("/runs/ranker/plain/charts.json", params={"from": 100, "to": 120}).json()
    assert {tuple(line["first"]) for chart in answer["charts"] for line in chart["lines"]} == {tuple(range(100, 121))}
    heat = service.client.get("/runs/ranker/plain/heatmap.json", params={"stat": "weight_norm", "from": 100, "to": 120})
    assert heat.json()["first"] == list(range(100, 121))
    assert service.client.get("/runs/ranker/plain/heatmap.json", params={"stat": "mood"}).status_code == 404


def test_the_list_reads_a_loss_once_as_long_as_no_step_is_new(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossguard_service.web import pages

    read: list[int] = []
    series = pages.scalar_series

    async def counting(database: object, run_id: int, *args: object, **options: object) -> object:
        read.append(run_id)
        return await series(database, run_id, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pages, "scalar_series", counting)
    service.send("fleet", "one", ranker(20))
    httpx.get(service.url, timeout=60)
    httpx.get(service.url, timeout=60)
    assert len(read) == len(set(read))


def test_every_runbook_is_a_page_and_the_incident_leads_to_its_own(service: Service) -> None:
    from lossguard_service.web.runbooks import FOR_KIND

    for name in FOR_KIND.values():
        page = service.client.get(f"/runbooks/{name}")
        assert page.status_code == 200
        assert "<h2>What to do</h2>" in page.text
        assert len(re.findall("<li>", page.text)) >= 3
        assert "`" not in page.text
    assert service.client.get("/runbooks/..%2Fservice").status_code == 404
    found = re.findall(r'href="(/runbooks/\w+)"', service.client.get("/runs/ranker/plain/incidents/1").text)
    assert found == ["/runbooks/LossguardFullDivergence"]


def test_a_chart_shows_what_the_series_of_the_interface_says(service: Service) -> None:
    charts = {one["id"]: one for one in service.client.get("/runs/ranker/poisoned/charts.json").json()["charts"]}
    path = "/v1/projects/ranker/runs/poisoned/series"
    for line in charts["loss"]["lines"]:
        name = "loss" if line["label"] == "total" else f"loss/{line['label']}"
        series = service.client.get(path, params={"name": name, "points": 600}).json()
        assert line["first"] == series["first"]
        assert line["nonfinite"] == series["nonfinite"]
        for drawn, told in zip(line["mean"], series["mean"], strict=True):
            assert drawn == told or drawn == pytest.approx(told, rel=1e-5)


def test_the_layers_page_names_what_moved_first_and_what_is_not_finite(service: Service) -> None:
    page = service.client.get("/runs/ranker/plain/layers").text
    rows = {
        row[1]: row[0]
        for row in re.findall(r"(<tr>\s*<th scope=\"row\" class=\"c-who\"><code>(.*?)</code>.*?</tr>)", page, re.DOTALL)
    }
    assert len(rows) == 4
    assert "moved first in the full divergence" in rows["shared0/kernel"]
    some = service.client.get("/runs/ranker/plain/layers", params={"q": "HEAD"}).text
    assert set(re.findall(r'c-who"><code>([^<]+)<', some)) == {"head_click/kernel", "head_play/kernel"}
    assert "2 of 4 layers with “HEAD” in the name." in some
    assert "No layer has that in its name" in service.client.get("/runs/ranker/plain/layers?q=nowhere").text
    poisoned = service.client.get("/runs/ranker/poisoned/layers").text
    first = re.search(
        r'<th scope="row" class="c-who"><code>(.*?)</code>.*?NaN or Inf in (\d+) values', poisoned, re.DOTALL
    )
    assert first is not None
    assert first.groups() == ("shared0/kernel", "121")


def test_an_attempt_that_was_killed_is_told_from_one_that_goes_on(tmp_path: Path) -> None:
    frames = ranker(192)
    for service in serve(tmp_path):
        service.send("ranker", "killed", frames[:64], stop=False)
        before = service.client.get("/runs/ranker/killed").text
        service.send("ranker", "killed", frames[70:], attempt="b" * 32, start=70, stop=False)
        page = re.sub(r"\s+", " ", service.client.get("/runs/ranker/killed").text)
    assert before.count("not yet") == 1
    assert "without a word" not in before
    assert re.search(r"without a word.*superseded after step 70", page)
    assert "steps 65 to 70 of attempt 1 (their chunk has not come: it still may, unless the trainer died" in page


def test_steps_that_loss_scaling_left_out_at_the_very_end_are_told_by_attempt(tmp_path: Path) -> None:
    frames = ranker(96)
    for service in serve(tmp_path):
        service.send("ranker", "scaled", frames[:64])
        service.send("ranker", "scaled", frames[64:], attempt="b" * 32, start=64, skipped=12)
        page = service.client.get("/runs/ranker/scaled").text
        attempts = service.client.get("/v1/projects/ranker/runs/scaled").json()["attempts"]
    assert [one["skipped_steps"] for one in attempts] == [0, 12]
    assert page.count("left out by loss scaling") == 1
    assert "its last 12 steps left out by loss scaling" in page
