"""The pages in a real Chromium: drawn, operable by keyboard, readable by screen readers, quiet on the console."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from pages_service import NASTY, TASKS, Service, ranker
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser
RUN = "/runs/ranker/plain"
COMPARE = "/compare?run=ranker/plain&run=ranker/clippy"


class Watched:
    """A page whose console, errors, dialogs and requests are kept."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.noise: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.noise.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.noise.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.noise.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture
def watched(browser: Browser, service: Service, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """A fresh page; the test fails if anything was logged or anything but the service was asked."""
    options: dict[str, Any] = getattr(request, "param", {})
    context = browser.new_context(base_url=service.url, viewport={"width": 1280, "height": 2400}, **options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    one = Watched(page)
    yield one
    context.close()
    assert one.noise == []
    assert {url for url in one.requests if not url.startswith((service.url, "data:"))} == set()


def drawn(page: Page, path: str) -> None:
    """Open a page and see all its charts taken over by plotly.js; the window is tall enough for a run's."""
    page.goto(path)
    page.wait_for_selector("#tracks[data-drawn=full]")


def ranges(page: Page) -> set[tuple[float, float]]:
    found = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].map(one => one._fullLayout.xaxis.range.map(Math.round))"
    )
    return {tuple(one) for one in found}


def test_a_run_is_drawn_with_its_charts_heat_map_and_incident(watched: Watched) -> None:
    page = watched.page
    drawn(page, RUN)
    assert page.locator(".track h3").all_inner_texts() == ["Batch AUC", "Normalized entropy", "Loss", "Learning rate"]
    assert page.locator(".track .scatterlayer .trace").count() >= 5
    assert page.locator("#heat-plot .heatmaplayer image").count() == 1
    shapes = page.evaluate(
        "[...document.querySelectorAll('.track .js-plotly-plot')].map(one => one.layout.shapes.map(it => it.name))"
    )
    assert all("incident" in names and "onset" in names for names in shapes)
    assert page.locator(".track .shapelayer path").count() >= 8
    pixels = page.locator("#heat-plot .heatmaplayer image").bounding_box()
    assert pixels is not None
    assert pixels["width"] > 600
    label = page.locator("#heat-plot").get_attribute("aria-label")
    assert label is not None
    assert label.startswith("Heat map of gradient_norm, 4 layers, steps 1 to 320")
    expect(page.locator("#incident-1")).not_to_have_attribute("open", "")
    page.locator("#heat-plot").click(position={"x": pixels["width"], "y": 20})  # in the incident's steps
    expect(page.locator("#incident-1")).to_have_attribute("open", "")
    expect(page.locator("#incident-1 summary")).to_be_focused()
    expect(page.locator("#incident-1 .timeline")).to_be_in_viewport()


def test_every_chart_is_sketched_before_plotly_has_come_and_stands_without_it(watched: Watched) -> None:
    page = watched.page
    page.route("**/plotly.js", lambda route: route.fulfill(body="", content_type="text/javascript"))
    page.goto(RUN)
    page.wait_for_selector("#tracks[data-drawn=full]")
    assert page.locator(".js-plotly-plot").count() == 0
    assert page.locator("#tracks .plot canvas.sketch").count() == page.locator("#tracks .plot").count() == 5
    inked = page.evaluate(
        "[...document.querySelectorAll('canvas.sketch')].map(one => { const size = [one.width, one.height];"
        " const data = one.getContext('2d').getImageData(0, 0, ...size).data; let ink = 0;"
        " for (let at = 3; at < data.length; at += 4) if (data[at]) ink += 1; return ink / (size[0] * size[1]); })"
    )
    assert min(inked) > 0.02
    assert inked[-1] > 0.4  # the heat map's cells
    page.fill("#range-from", "200")
    page.fill("#range-to", "240")
    with page.expect_response(re.compile("charts.json.*from=200")):
        page.locator("#range button[type=submit]").click()


def test_what_is_out_of_sight_is_brought_up_to_date_when_it_comes_into_sight(watched: Watched) -> None:
    page = watched.page
    page.set_viewport_size({"width": 1280, "height": 500})
    drawn(page, RUN)
    heat = page.locator("#heat-plot")
    expect(heat.locator("canvas.sketch")).to_have_count(1)
    heat.scroll_into_view_if_needed()
    expect(heat.locator(".heatmaplayer image")).to_have_count(1)
    with page.expect_response(re.compile("charts.json.*from=")):
        page.locator("[data-range=in]").evaluate("one => one.click()")
    page.evaluate("scrollTo(0, 0)")
    page.locator(".track .plot").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.track .plot')._fullLayout.xaxis.range[0] > 50")


def test_what_is_not_finite_is_a_mark_in_the_charts_and_in_the_heat_map(watched: Watched) -> None:
    drawn(watched.page, "/runs/ranker/poisoned")
    marks = watched.page.evaluate(
        "[...document.querySelectorAll('.track .js-plotly-plot')].flatMap(one => one.data)"
        ".filter(trace => trace.meta === 'nonfinite').map(trace => trace.x.length)"
    )
    assert marks == [3, 3]  # the total loss and the task
    expect(watched.page.locator("#heat-key")).to_contain_text("NaN or Inf")
    assert watched.page.evaluate("document.getElementById('heat-plot').data.length") == 2


def test_a_zoom_moves_every_chart_and_the_heat_map_and_can_be_shared(watched: Watched) -> None:
    page = watched.page
    drawn(page, RUN)
    page.locator(".track .nsewdrag").first.scroll_into_view_if_needed()
    box = page.locator(".track .nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 40, steps=4)
    with page.expect_response(re.compile("heatmap.json.*from=")):
        page.mouse.up()
    page.wait_for_function("location.hash.startsWith('#steps=')")
    ((first, last),) = ranges(page)
    assert 140 < first < 180
    assert 220 < last < 260
    address = page.url
    page.goto("about:blank")
    drawn(page, address)
    assert ranges(page) == {(first, last)}


def test_everything_that_the_mouse_can_do_the_keyboard_can(watched: Watched) -> None:
    page = watched.page
    drawn(page, RUN)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    expect(page.locator(".skip")).to_be_in_viewport()
    page.locator("#range-from").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("200")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("240")
    page.keyboard.press("Enter")
    page.wait_for_function("location.hash === '#steps=200-240'")
    assert len(ranges(page)) == 1
    legend = page.get_by_role("button", name="play")
    legend.focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="play")).to_have_attribute("aria-pressed", "false")
    expect(page.get_by_role("button", name="play")).to_be_focused()


def test_runs_are_chosen_in_the_list_and_drawn_side_by_side(watched: Watched) -> None:
    page = watched.page
    page.goto("/?project=ranker")
    for name in ("plain", "clippy"):
        page.get_by_label(f"Compare {name}").check()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.get_by_label("Compare plain")).to_be_checked()
    page.get_by_role("button", name="Compare the ticked runs").click()
    page.wait_for_selector("#tracks[data-drawn=full]")
    assert page.locator(".track").count() >= 4
    lines = page.evaluate("document.querySelector('.js-plotly-plot').data.map(trace => trace.name)")
    assert sorted(set(lines)) == ["ranker/clippy", "ranker/plain"]


def test_focus_is_visible_on_whatever_can_be_reached(watched: Watched) -> None:
    page = watched.page
    drawn(page, RUN)
    seen = 0
    for _ in range(60):
        page.keyboard.press("Tab")
        style = page.evaluate(
            "(() => { const one = document.activeElement; if (one === document.body) return null;"
            " const style = getComputedStyle(one); return [one.outerHTML.slice(0, 80), style.outlineStyle,"
            " parseFloat(style.outlineWidth)]; })()"
        )
        if style is None:
            break
        assert style[1] != "none", style
        assert style[2] >= 2, style
        seen += 1
    assert seen > 15


def test_the_stat_and_the_order_of_the_heat_map_can_be_chosen(watched: Watched) -> None:
    page = watched.page
    drawn(page, RUN)
    with page.expect_response(re.compile("stat=clippy_ratio")):
        page.select_option("#heat-stat", "clippy_ratio")
    expect(page.locator("#heat-plot")).to_have_attribute("aria-label", re.compile("Heat map of clippy_ratio"))
    expect(page.locator("#heat-note")).to_contain_text("lambda_rel")
    with page.expect_response(re.compile("stat=would_be%2Fgc")):
        page.select_option("#heat-stat", "would_be/gc")
    expect(page.locator("#heat-plot")).to_have_attribute("aria-label", re.compile("Heat map of would_be/gc"))
    expect(page.locator("#heat-note")).to_contain_text("gradient clipping")
    page.select_option("#heat-order", "mover")
    order = page.evaluate("document.getElementById('heat-plot').layout.yaxis.ticktext")
    assert order[0] == "shared0/kernel"
    many = {
        "stat": "weight_norm",
        "smallest": False,
        "layers": [f"block_{n}" for n in range(100)],
        "first": [1, 101, 201],
    }
    many |= {"last": [100, 200, 320], "maximum": [[1, 1, 1 + n] for n in range(100)], "nonfinite": [[0, 0, 0]] * 100}
    page.route("**/heatmap.json*", lambda route: route.fulfill(json=many))
    page.select_option("#heat-stat", "weight_norm")
    expect(page.locator("#heat-note")).to_contain_text("the first 60 of 100 layers in this order")
    assert page.evaluate("document.getElementById('heat-plot').layout.yaxis.ticktext")[0] == "block_99"
    page.select_option("#heat-order", "model")
    expect(page.locator("#heat-note")).not_to_contain_text("of 100 layers")


def test_a_nasty_name_runs_nowhere_and_is_shown_as_it_is(watched: Watched) -> None:
    page = watched.page
    page.goto("/")
    page.get_by_role("link", name=NASTY).first.click()
    page.wait_for_selector("#tracks[data-drawn=full]")
    expect(page.locator("h1")).to_have_text(NASTY)
    page.locator("#heat-plot").scroll_into_view_if_needed()
    page.wait_for_selector("#heat-plot .heatmaplayer image")  # before that nothing would notice the mouse
    box = page.locator("#heat-plot").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 600, box["y"] + 20)
    page.wait_for_selector("#heat-plot .hoverlayer .hovertext")
    assert page.locator("#tracks a, #heat-plot b").count() == 0
    assert "alert(1)" in (page.locator("#heat-plot .hoverlayer").text_content() or "")


def test_new_steps_appear_without_a_reload_and_the_focus_stays(watched: Watched, service: Service) -> None:
    frames = ranker(128)
    service.send("ranker", "young", frames[:64], config=TASKS, stop=False)
    page = watched.page
    drawn(page, "/runs/ranker/young")
    page.locator("#attempts .scroll").focus()
    with page.expect_response(re.compile("charts.json")):
        # Within, since the page looks by itself every few seconds too, and asks for no charts when it knows them.
        service.send("ranker", "young", frames[64:], index=1, stop=False)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#attempts")).to_contain_text("128")
    expect(page.locator("#attempts .scroll")).to_be_focused()
    page.wait_for_function("document.querySelector('.js-plotly-plot')._fullLayout.xaxis.range[1] > 100")


@pytest.mark.parametrize("path", ["/", RUN, f"{RUN}/incidents/1", "/runs/ranker/poisoned", COMPARE, f"{RUN}/layers"])
def test_axe_finds_nothing_serious(watched: Watched, path: str) -> None:
    watched.page.goto(path)
    if path != "/" and not path.endswith("/layers"):
        watched.page.wait_for_selector("#tracks[data-drawn=full]")
    for scheme in ("light", "dark"):
        watched.page.emulate_media(color_scheme=scheme)
        serious = [
            (scheme, one["id"], [node["target"] for node in one["nodes"]][:5])
            for one in Axe().run(watched.page).response["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == []


@pytest.mark.parametrize("path", ["/", RUN, f"{RUN}/incidents/1", COMPARE, f"{RUN}/layers"])
def test_a_narrow_screen_scrolls_in_one_direction_only(watched: Watched, path: str) -> None:
    watched.page.set_viewport_size({"width": 400, "height": 800})
    watched.page.goto(path)
    if path != "/" and not path.endswith("/layers"):
        watched.page.wait_for_selector("#tracks[data-drawn=full]")
    assert watched.page.evaluate("document.documentElement.scrollWidth") == 400


@pytest.mark.parametrize("watched", [{"java_script_enabled": False}], indirect=True)
def test_without_javascript_the_page_still_says_what_broke(watched: Watched) -> None:
    watched.page.goto(RUN)
    expect(watched.page.locator("#headline-title")).to_contain_text("diverged at step")
    expect(watched.page.locator("noscript p")).to_contain_text("The charts need JavaScript")
