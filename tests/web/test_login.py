"""Login by token: the cookie, what it opens, what other sites cannot do with it, and the pages for admins."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from pages_service import NASTY, TASKS, Service, ranker, serve
from playwright.sync_api import Browser, Page, expect

from lossguard_service.web.login import FAILURE_SECONDS, MOST_FAILURES, Throttle

ADMIN = "the admin's token; with ümläuts"
HTML = {"accept": "text/html,*/*;q=0.8"}
OURS = {"sec-fetch-site": "same-origin"}
ADMIN_PAGES = ("/admin/tokens", "/admin/policies", "/admin/waivers", "/admin/audit")


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that asks for tokens, with a run in each of two projects."""
    for running in serve(tmp_path_factory.mktemp("closed"), admin_token=ADMIN):
        with httpx.Client(base_url=running.url, timeout=60, auth=("anybody", ADMIN)) as admin:
            one = Service(running.url, admin)
            one.send("ranker", "plain", ranker(40), config=TASKS)
            one.send("secret", "hidden", ranker(40), config=TASKS)
            one.judge("ranker", "plain", 40)
            yield one


@contextmanager
def visitor(service: Service, token: str | None = None) -> Iterator[httpx.Client]:
    """A browser without scripts, logged in if a token is given."""
    with httpx.Client(base_url=service.url, headers=HTML, timeout=60) as client:
        if token is not None:
            assert enter(client, token).status_code == 303
        yield client


def enter(client: httpx.Client, token: str, **options: Any) -> httpx.Response:
    return client.post("/login", data={"token": token, **options}, headers=OURS)


def make(service: Service, **fields: Any) -> str:
    answer = service.client.post("/admin/tokens", data={"name": "test", "days": "", **fields}, headers={**HTML, **OURS})
    assert answer.status_code == 200, answer.text
    found = re.search(r"<code>(lg_[\w-]{43})</code>", answer.text)
    assert found is not None
    return found[1]


def test_a_browser_without_a_token_is_sent_to_the_login_and_back(closed: Service) -> None:
    with visitor(closed) as client:
        answer = client.get("/runs/ranker/plain?x=1")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/login?next=%2Fruns%2Franker%2Fplain%3Fx%3D1"
        assert "www-authenticate" not in answer.headers
        page = client.get(answer.headers["location"]).text
        assert 'name="next" value="/runs/ranker/plain?x=1"' in page
        answer = enter(client, ADMIN, next="/runs/ranker/plain?x=1")
        assert answer.headers["location"] == "/runs/ranker/plain?x=1"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/runs/ranker/plain").status_code == 200
        assert client.get("/v1/runs").status_code == 200
        assert client.post("/logout", headers=OURS).headers["location"] == "/login"
        assert client.get("/").status_code == 303


def test_a_program_gets_the_same_refusals_as_before(closed: Service) -> None:
    with httpx.Client(base_url=closed.url, timeout=60) as client:
        for path in ("/", "/runs/ranker/plain", "/runs/ranker/plain/charts.json", *ADMIN_PAGES):
            answer = client.get(path)
            assert answer.status_code == 401, path
            assert "Basic" in answer.headers["www-authenticate"]
        assert client.get("/", auth=("x", ADMIN)).status_code == 200
        assert client.get("/", auth=("x", "wrong"), headers=HTML).status_code == 303


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"])
def test_a_login_never_leads_to_another_site(closed: Service, to: str) -> None:
    with visitor(closed) as client:
        assert enter(client, ADMIN, next=to).headers["location"] == "/"


def test_a_wrong_token_gets_a_sentence_and_no_cookie(closed: Service) -> None:
    with visitor(closed) as client:
        answer = enter(client, "lg_wrong")
        assert answer.status_code == 401
        assert "unknown, expired or revoked" in answer.text
        assert 'role="alert"' in answer.text
        assert "set-cookie" not in answer.headers
        assert "Paste a token" in enter(client, " ").text
        assert client.post("/login", content=b"token=%ff&" * 99, headers=OURS).status_code == 401


def test_an_address_that_fails_often_waits_and_may_try_again() -> None:
    now = [1000.0]
    throttle = Throttle(lambda: now[0])
    for _ in range(MOST_FAILURES):
        assert throttle.wait_seconds("a") == 0
        throttle.failed("a")
    assert throttle.wait_seconds("a") == FAILURE_SECONDS
    assert throttle.wait_seconds("b") == 0
    now[0] += FAILURE_SECONDS
    assert throttle.wait_seconds("a") == 0
    throttle.failed("a")
    assert throttle.wait_seconds("a") == 0


@pytest.mark.parametrize(
    "headers",
    [{}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "https://evil.example"}],
    ids=["nothing", "cross-site", "same-site", "foreign origin"],
)
def test_another_site_cannot_use_the_cookie_to_change_anything(closed: Service, headers: dict[str, str]) -> None:
    with visitor(closed, ADMIN) as client:
        answer = client.post("/admin/tokens", data={"name": "stolen", "scope": "admin"}, headers=headers)
        assert answer.status_code == 303  # the cookie does not count: to the login
        waiver = client.post("/v1/keys/rotate", json={"author": "x", "reason": "y"}, headers=headers)
        assert waiver.status_code == 401
        assert client.post("/login", data={"token": ADMIN}, headers=headers).status_code == 403
        assert client.post("/logout", headers=headers).status_code == 403
        # Browsers send Basic by themselves too.
        basic = client.post(
            "/admin/tokens", data={"name": "stolen", "scope": "admin"}, headers=headers, auth=("x", ADMIN)
        )
        assert basic.status_code == 403
        assert "stolen" not in client.get("/admin/tokens").text


def test_our_own_origin_is_enough_for_browsers_that_say_no_more(closed: Service) -> None:
    with visitor(closed) as client:
        host = urlsplit(closed.url).netloc
        answer = client.post("/login", data={"token": ADMIN}, headers={"origin": f"http://{host}"})
        assert answer.status_code == 303


def test_a_token_for_one_project_sees_nothing_of_the_others(closed: Service) -> None:
    token = make(closed, scope=["read"], project="ranker")
    with visitor(closed, token) as client:
        assert client.get("/").headers["location"] == "/?project=ranker"
        page = client.get("/?project=ranker").text
        assert ">plain</a>" in page
        assert "secret" not in page
        assert client.get("/?project=secret").headers["location"] == "/?project=ranker"
        for path in ("/runs/secret/hidden", "/compare?project=ranker&run=ranker/plain&run=secret/hidden", *ADMIN_PAGES):
            answer = client.get(path)
            assert answer.status_code == 403, path
            assert "ask for one that does" in answer.text
            assert answer.headers["content-type"].startswith("text/html")
        data = client.get("/compare.json?project=ranker&run=secret/hidden", headers={"accept": "*/*"})
        assert data.status_code == 403
        assert client.get("/runbooks/full-divergence").status_code in (200, 404)


def test_a_token_is_made_shown_once_and_revoked(closed: Service) -> None:
    token = make(closed, name=NASTY, scope=["read", "gate"], days="2")
    page = closed.client.get("/admin/tokens").text
    assert token not in page
    assert "<script>alert" not in page
    assert "read, gate" in page
    with visitor(closed, token) as client:
        row = re.search(r"&lt;script&gt;.*?/admin/tokens/(\w{16})/revoke", page, re.DOTALL)
        assert row is not None
        path = f"/admin/tokens/{row[1]}/revoke"
        assert client.post(path, headers=OURS).status_code == 403
        assert closed.client.post(path, headers={**HTML, **OURS}).status_code == 303
        assert closed.client.post(path, headers={**HTML, **OURS}).status_code == 404


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "", "scope": "read"}, "Name:"),
        ({"name": "x"}, "Scopes: tick at least one"),
        ({"name": "x", "scope": "root"}, "Scopes: tick at least one"),
        ({"name": "x", "scope": "read", "days": "soon"}, "Days:"),
        ({"name": "x", "scope": "read", "days": "-1"}, "Days:"),
    ],
)
def test_a_form_that_makes_no_sense_gets_a_sentence(closed: Service, fields: dict[str, str], words: str) -> None:
    answer = closed.client.post("/admin/tokens", data=fields, headers={**HTML, **OURS})
    assert answer.status_code == 422
    assert words in answer.text


def test_nobody_locks_themselves_out_of_an_open_service_or_opens_a_closed_one(tmp_path: Path) -> None:
    for service in serve(tmp_path):
        client = service.client
        client.headers.update(HTML)
        assert client.get("/login").headers["location"] == "/"
        assert "No token exists" in client.get("/admin/tokens").text
        answer = client.post("/admin/tokens", data={"name": "first", "scope": "read"}, headers=OURS)
        assert answer.status_code == 422
        assert "must have the scope admin" in answer.text
        secret = make(service, scope="admin")
        client.auth = ("x", secret)
        row = re.search(r"/admin/tokens/(\w{16})/revoke", client.get("/admin/tokens").text)
        assert row is not None
        answer = client.post(f"/admin/tokens/{row[1]}/revoke", headers=OURS)
        assert answer.status_code == 422
        assert "last admin token" in answer.text


def test_the_rules_the_waivers_and_the_log_can_be_read(closed: Service) -> None:
    client = closed.client
    waiver = {
        "project": "ranker",
        "run": "plain",
        "checks": ["coverage"],
        "author": NASTY,
        "reason": NASTY,
        "seconds": 3600,
    }
    made = client.post("/v1/waivers", json=waiver)
    assert made.status_code == 200, made.text
    rules = {"name": "nightly", "quiet_steps": 77}
    assert client.post("/v1/policies", json={"rules": {**rules, "version": 1}, "author": "ann"}).status_code == 200
    page = client.get("/admin/policies").text
    for words in ("strict", "nightly", "batch_auc_floor", "blocking_kinds", "quiet_steps, not as in default"):
        assert words in page, words
    page = client.get("/admin/waivers").text
    assert "Counts" in page
    assert "<script>alert" not in page
    page = client.get("/admin/audit").text
    assert page.index("Policy stored</td>") < page.index("Waiver made</td>") < page.index("Verdict</td>")
    assert "Verdict</td>" not in client.get("/admin/audit?kind=policy_created").text
    assert "Policy stored</td>" not in client.get("/admin/audit?project=ranker").text


def test_who_guesses_is_made_to_wait_and_headers_go_on_working(tmp_path: Path) -> None:
    for service in serve(tmp_path, admin_token=ADMIN):
        with visitor(service) as client:
            assert {enter(client, f"guess {number}").status_code for number in range(MOST_FAILURES)} == {401}
            answer = enter(client, ADMIN)
            assert answer.status_code == 429
            assert 0 < int(answer.headers["retry-after"]) <= FAILURE_SECONDS
            assert "wait" in answer.text
            assert client.get("/", auth=("x", ADMIN)).status_code == 200


@pytest.fixture
def page(browser: Browser, closed: Service) -> Iterator[Page]:
    """A fresh page in Chromium; what it logs fails the test."""
    context = browser.new_context(base_url=closed.url, viewport={"width": 400, "height": 900})
    one = context.new_page()
    noise: list[str] = []
    one.on("console", lambda message: noise.append(message.text))
    one.on("pageerror", lambda error: noise.append(str(error)))
    yield one
    context.close()
    assert [text for text in noise if "status of 401" not in text] == []


@pytest.mark.browser
def test_a_person_logs_in_makes_a_token_and_logs_out(page: Page, closed: Service) -> None:
    page.goto("/admin/tokens")
    page.get_by_label("Token").fill("lg_not_it")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("unknown, expired or revoked")
    page.get_by_label("Token").fill(ADMIN)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/admin/tokens")
    assert page.evaluate("document.cookie") == ""
    page.get_by_label("Name").fill("nightly export")
    page.get_by_label("gate").check()
    page.get_by_role("button", name="Make the token").click()
    expect(page.locator("#secret code")).to_have_text(re.compile(r"^lg_"))
    for path in (*ADMIN_PAGES, "/"):
        page.goto(path)
        found = Axe().run(page)
        serious = [one for one in found.response["violations"] if one["impact"] in ("serious", "critical")]
        assert serious == [], path
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, path
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    found = Axe().run(page)
    assert [one["id"] for one in found.response["violations"] if one["impact"] in ("serious", "critical")] == []
    page.goto("/runs/ranker/plain")
    page.wait_for_url("**/login?next=*")
