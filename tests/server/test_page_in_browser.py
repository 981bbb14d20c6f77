"""The operator's page as operators use it: headless Chromium against the served demo."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from benchmarks.serving import ROOT, running_server
from server.auth import ADMINS, Role, new_key
from tests.programs import needed
from tests.server.harness import CHAT, chat, keys_file

pytestmark = [pytest.mark.browser, pytest.mark.real]

GUARDS = ROOT / "artifacts" / "demo" / "guards"
GUARD = "ksd-mathematics"
SERVED = ("--model", str(ROOT / "artifacts" / "demo" / "model"), "--served-name", "scripted")
QUESTION = "What is 23 plus 58?"
AMONG_OTHERS = f"I went to Paris last week and liked it. {QUESTION} Please answer in German."
"""Withheld by a span whose score lies between half of tau and tau."""
KEPT = "What is the capital of France?"
WIDE, NARROW = 1280, 360
Scheme = Literal["light", "dark"]
_KEYS = {role: new_key(role.value, role) for role in Role}
_WAIT_MS = 15_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = needed("chromium", "chromium")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keys_file(tmp_path_factory.mktemp("keys"), *(entry for _, entry in _KEYS.values()))


@pytest.fixture(scope="module")
def url(keys: Path) -> Iterator[str]:
    artifacts = [str(GUARDS / name) for name in (GUARD, "ksd-code", "ksd-de")]
    with running_server(
        *SERVED, "--artifacts", *artifacts, "--shadow", "ksd-code", "--api-keys-file", str(keys)
    ) as address:
        for index, text in enumerate((QUESTION, KEPT, "Write a Python function that adds two numbers.") * 4):
            assert ask(address, text, Role.ADMIN if index % 2 else Role.USER).status_code == 200
        yield address


def ask(url: str, text: str, role: Role = Role.USER) -> httpx.Response:
    headers = {"authorization": f"Bearer {_KEYS[role][0]}"}
    return httpx.post(url + CHAT, json=chat(text, max_tokens=8, temperature=0), headers=headers, timeout=60)


def reason(url: str, text: str) -> str:
    return str(ask(url, text).json()["choices"][0]["finish_reason"])


@contextmanager
def opened(
    browser: Browser, url: str, role: Role | None, *, scheme: Scheme = "light", width: int = WIDE, quiet: bool = True
) -> Iterator[Page]:
    """The page, signed in where there is a role. `quiet`: nothing may be logged as an error, and nothing come from
    elsewhere."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    context.set_default_timeout(_WAIT_MS)
    expect.set_options(timeout=_WAIT_MS)
    page = context.new_page()
    troubles: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/ui")
    if role is not None:
        page.get_by_label("API key").fill(_KEYS[role][0])
        page.get_by_role("button", name="Open").click()
        page.get_by_role("heading", name=GUARD).wait_for()
    yield page
    assert [each for each in asked if not each.startswith(url)] == []
    assert troubles == [] or not quiet
    context.close()


def accessible(page: Page) -> None:
    """axe-core finds nothing, of any severity, in any of its rules' groups."""
    found = Axe().run(page)
    assert found.response["passes"], "the positive control"
    told = [(each["id"], [node["target"] for node in each["nodes"]]) for each in found.response["violations"]]
    assert told == []


def fits(page: Page) -> None:
    """Nothing makes the page itself scroll sideways."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def judge(page: Page, text: str) -> str:
    """Tries a prompt and gives back what the page says of it."""
    page.get_by_label("Prompt", exact=True).fill(text)
    with page.expect_response("**/v1/attributions"):
        page.get_by_role("button", name="Judge").click()
    expect(page.locator("#try-button")).to_be_enabled()
    return page.locator("#try-verdict").inner_text()


def span(page: Page) -> str:
    return "".join(page.locator(".token.span").all_inner_texts()).replace("·", " ")


def card(page: Page, name: str = GUARD) -> Locator:
    return page.get_by_role("article", name=name)


def to_factor(page: Page, factor: float) -> None:
    """Moves the threshold's slider by the keyboard, from wherever it is."""
    slider = card(page).get_by_role("slider")
    slider.focus()
    slider.press("Home" if factor < 1 else "End")
    assert float(slider.input_value()) == factor


def applied(page: Page) -> int:
    with page.expect_response("**/admin/guards/*") as answered:
        card(page).get_by_role("button", name="Apply").click()
    return int(answered.value.status)


def test_a_key_opens_it_and_is_forgotten(browser: Browser, url: str) -> None:
    with opened(browser, url, None) as page:
        page.get_by_label("API key").wait_for()
        accessible(page)
        page.get_by_label("API key").fill("sk-wrong")
        page.get_by_role("button", name="Open").click()
        page.get_by_role("alert").get_by_text("not known").wait_for()
        page.get_by_label("API key").fill(_KEYS[Role.OPERATOR][0])
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=GUARD).wait_for()
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        page.reload()
        page.get_by_role("heading", name=GUARD).wait_for()
        page.get_by_role("button", name="Forget key").click()
        page.get_by_label("API key").wait_for()
        assert page.evaluate("sessionStorage.length") == 0
        assert page.get_by_role("heading", name=GUARD).count() == 0


def test_state_and_traffic(browser: Browser, url: str) -> None:
    with opened(browser, url, Role.ADMIN) as page:
        assert page.locator("#status").inner_text() == "ready"
        assert page.get_by_role("article").count() == 3
        for name, mode in ((GUARD, "enforced"), ("ksd-code", "shadow"), ("ksd-de", "enforced")):
            pills = card(page, name).locator(".pills").inner_text().split()
            assert pills == [mode, "verified"]
        card(page).get_by_text("Details").click()
        digest = re.search(r"Artifact\s+([0-9a-f]{16})", card(page).inner_text())
        headers = {"authorization": f"Bearer {_KEYS[Role.ADMIN][0]}"}
        rows = httpx.get(f"{url}/v1/guards", headers=headers).json()["data"]
        assert digest is not None
        assert rows[0]["digest"].startswith(digest[1])
        figures = page.locator("#figures").inner_text()
        assert "Withheld" in figures
        rows = page.locator("#verdict-rows tr").all_inner_texts()
        assert any("withheld" in row and GUARD in row and "prompt, token" in row for row in rows)
        assert any("answered" in row and "ksd-code (shadow)" in row for row in rows)
        assert {row.split("\t")[6] for row in rows} == {"team", ADMINS}
        assert "France" not in page.inner_text("body")
        assert "capital" not in page.inner_text("body")
        drawn = (
            card(page).locator("svg rect").evaluate_all("all => all.filter(each => each.getBBox().height > 0).length")
        )
        assert drawn >= 2
        card(page).get_by_text("As a table").first.click()
        drawings = card(page).locator("figure").all()
        assert len(drawings) == 2, "scores over tau, and their quantiles, which the demo's guards know"
        for drawing in drawings:
            assert sum(map(int, drawing.locator("td").all_text_contents())) == len(rows)


def test_quantiles_interventions_and_what_is_wrong(browser: Browser, url: str) -> None:
    """What the demo's artifacts do not have, put into the server's own answers."""

    def with_quantiles(route: Route) -> None:
        response = route.fetch()
        told = response.json()
        for index, each in enumerate(told["data"]):
            each["guards"][0]["quantile"] = [index % 4 / 4, index % 4 / 4 + 0.01]
        route.fulfill(response=response, json=told)

    def with_troubles(route: Route) -> None:
        response = route.fetch()
        told = response.json()
        told["data"][1] |= {"verified": False, "reason": "canary 0: got 1, wanted 2"}
        told["data"][2] |= {"kind": "intervention", "method": "neuron-adjust"}
        route.fulfill(response=response, json=told)

    with opened(browser, url, None) as page:
        page.route("**/v1/verdicts*", with_quantiles)
        page.route("**/v1/guards", with_troubles)
        page.get_by_label("API key").fill(_KEYS[Role.ADMIN][0])
        page.keyboard.press("Enter")
        card(page).get_by_text("Quantiles among the skill-free texts").first.wait_for()
        assert card(page).locator("svg .even").count() == 1
        assert card(page, "ksd-code").locator(".pills").inner_text().split() == ["shadow", "not", "verified"]
        assert "canary 0: got 1, wanted 2" in card(page, "ksd-code").inner_text()
        assert card(page, "ksd-de").locator(".pills").inner_text().split() == ["acts", "verified"]
        assert card(page, "ksd-de").get_by_role("slider").count() == 0
        accessible(page)


def test_it_is_live(browser: Browser, url: str) -> None:
    with opened(browser, url, Role.ADMIN) as page:
        before = page.locator("#verdict-rows tr").first.inner_text()
        ask(url, QUESTION)
        expect(page.locator("#verdict-rows tr").first).not_to_have_text(before, use_inner_text=True)
        page.get_by_role("button", name="Pause updates").click()
        assert page.get_by_role("button", name="Pause updates").get_attribute("aria-pressed") == "true"


def test_a_prompt_that_is_withheld_shows_its_span(browser: Browser, url: str) -> None:
    with opened(browser, url, Role.OPERATOR) as page:
        assert judge(page, AMONG_OTHERS) == f"Withheld by {GUARD}."
        assert page.locator("#try-said").inner_text() == f"Withheld by {GUARD}."
        assert "23 plus 58" in span(page)
        assert "Paris" not in span(page)
        said = page.locator("#try-result").inner_text()
        assert "The span that fired is tokens" in said
        assert re.search(r"Score 0\.\d+ against tau 0\.171", said)
        shades = page.locator(".token").evaluate_all("all => all.map(each => getComputedStyle(each).backgroundColor)")
        assert len(set(shades)) > 5, "tokens are coloured by their share"
        # By the keyboard alone: one stop, and arrows within.
        tokens = page.get_by_role("listbox")
        tokens.focus()
        first = page.locator(".detail").inner_text()
        tokens.press("ArrowRight")
        second = page.locator(".detail").inner_text()
        assert first != second
        assert re.match(r"Token \d+, .*: .?\d+\.\d\s% of what it takes to fire\.", second)
        assert tokens.get_attribute("aria-activedescendant") is not None
        page.locator("label", has_text="ksd-de").click()
        assert "reads the last token alone" in page.locator("#try-result").inner_text()
        assert judge(page, KEPT) == "Answered: no guard fires on this prompt."
        page.locator("label", has_text="As bare text").click()
        assert judge(page, f"Q: {QUESTION}\nA:") == f"Withheld by {GUARD}."


def test_text_is_never_markup(browser: Browser, url: str) -> None:
    with opened(browser, url, Role.OPERATOR) as page:
        judge(page, "<img src=x onerror=alert(1)><b>bold</b>")
        assert page.locator("#try-result img, #try-result b").count() == 0
        assert "<img src=x onerror=alert(1)>" in "".join(page.locator(".token").all_inner_texts()).replace("·", " ")


def test_operators_preview_and_do_not_change(browser: Browser, url: str) -> None:
    with opened(browser, url, Role.OPERATOR) as page:
        assert card(page).get_by_role("button", name="Apply").count() == 0
        assert "role admin" in card(page).inner_text()


def test_users_see_guards_alone(browser: Browser, url: str) -> None:
    with opened(browser, url, Role.USER) as page:
        assert page.locator("#guards").is_visible()
        for section in ("#traffic", "#try", "#verdicts"):
            assert page.locator(section).is_hidden()
        assert "role operator" in page.locator("#role").inner_text()
        assert card(page).get_by_role("slider").count() == 0


def test_a_threshold_is_previewed_and_takes_effect(browser: Browser, url: str) -> None:
    """And so does a mode. What was changed is put back."""
    with opened(browser, url, Role.ADMIN) as page:
        assert judge(page, QUESTION) == f"Withheld by {GUARD}."
        preview = card(page).locator(".preview")
        assert "as now" in preview.inner_text()
        to_factor(page, 2)
        assert re.search(r"Of the last \d+ prompts \d+ would be refused", preview.inner_text())
        to_factor(page, 0.5)
        assert reason(url, AMONG_OTHERS) == "content_filter", "nothing counts before Apply"
        assert applied(page) == 200
        expect(page.locator("#said")).to_contain_text("0.50 times")
        assert reason(url, AMONG_OTHERS) != "content_filter"
        assert judge(page, AMONG_OTHERS) != f"Withheld by {GUARD}."
        assert "0.50" in card(page).locator(".value").inner_text()
        card(page).get_by_role("radio", name="Shadow").check(force=True)
        assert applied(page) == 200
        expect(page.locator("#said")).to_contain_text("shadow")
        assert reason(url, QUESTION) != "content_filter"
        assert judge(page, QUESTION) == f"Answered; {GUARD} would have withheld it."
        card(page).get_by_role("radio", name="Enforce").check(force=True)
        slider = card(page).get_by_role("slider")
        slider.fill("1")
        assert applied(page) == 200
        expect(page.locator("#said")).to_contain_text("1.00 times")
        assert judge(page, AMONG_OTHERS) == f"Withheld by {GUARD}."


def test_a_refused_change_is_said(browser: Browser, url: str) -> None:
    with opened(browser, url, Role.ADMIN, quiet=False) as page:
        page.route(
            "**/admin/guards/*", lambda route: route.fulfill(status=503, json={"error": {"message": "Not now."}})
        )
        to_factor(page, 0.5)
        assert applied(page) == 503
        card(page).get_by_text("Not now.").wait_for()
        assert card(page).get_by_role("button", name="Reset").is_enabled(), "what was meant is still there"


@pytest.mark.parametrize("role", [Role.USER, Role.OPERATOR, Role.ADMIN])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_both_themes_and_widths_are_accessible(
    browser: Browser, url: str, role: Role, scheme: Scheme, width: int
) -> None:
    with opened(browser, url, role, scheme=scheme, width=width) as page:
        if role is not Role.USER:
            judge(page, AMONG_OTHERS)
            for each in page.locator("details summary").all():
                each.click()
        fits(page)
        accessible(page)
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 20, 23)"
        assert dark == (scheme == "dark")


def test_everything_is_reached_by_the_keyboard(browser: Browser, url: str) -> None:
    with opened(browser, url, Role.ADMIN) as page:
        judge(page, KEPT)
        reached: list[str] = []
        for _ in range(100):  # more than there are, so that it comes round
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        wanted = {
            "Skip to the content",
            "pause",
            "leave",
            f"guard-{GUARD}-tau",
            "window",
            "prompt",
            "try-button",
            "Details",
            "As a table",
        }
        assert wanted <= {*reached}


def test_a_server_that_is_gone_is_said(browser: Browser, url: str) -> None:
    with opened(browser, url, Role.OPERATOR, quiet=False) as page:
        page.route("**/ui/session", lambda route: route.abort())
        page.get_by_role("alert").get_by_text("cannot be reached").wait_for()
        page.unroute("**/ui/session")
        expect(page.get_by_role("alert")).to_be_empty()
