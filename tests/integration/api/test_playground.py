"""The playground in a real Chromium, against the real daemon. Screenshots are kept under build/screenshots."""

from __future__ import annotations

import re

import pytest

from support.browser import VIEWS, Pages, chromium, fits, needs_chromium, shoot

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def open_page(browser, device):
    """Opens the page in a view; what its console says against it fails the test."""
    pages = Pages(browser, device.address)
    yield pages.open
    pages.close()
    assert pages.complaints == []


def _ask(page, words: str = "Turn off the kitchen light.") -> None:
    # `hold`: the cloud waits for the drafts that the page shall show, however slow this machine is.
    page.eval_on_selector("select[name=pace]", "it => { it.value = 'hold' }")
    page.fill("#words", words)
    page.keyboard.press("Enter")
    page.locator("#step:enabled").wait_for(timeout=120_000)


@pytest.mark.parametrize("view", list(VIEWS))
def test_answer_streams_in_with_its_colours_and_bill(open_page, view):
    """Tokens by origin, as many as the timings say; the strip tells the bill; nothing from elsewhere, no complaint."""
    page = open_page(view)
    _ask(page)
    assert page.locator(".assistant .t").count() > 5
    accepted = page.locator(".assistant .t.accepted").count()
    assert accepted > 0
    told = dict(
        zip(page.locator("#strip dt").all_inner_texts(), page.locator("#strip dd").all_inner_texts(), strict=True)
    )
    # The end token is not shown, and a draft that device and cloud both made is counted by either.
    assert abs(int(told["Drafts accepted"].split("/")[0]) - accepted) <= 2
    assert float(told["Tokens/cloud step"]) > 1
    assert told["RTT"].endswith("ms")
    assert fits(page)
    shoot(page, view, whole=view == "phone")


def test_token_tells_margin_and_alternatives_by_keyboard(open_page):
    """Focus on a token opens its card; arrows walk on; Escape closes."""
    page = open_page("light")
    _ask(page)
    page.locator(".assistant .t.accepted").first.focus()
    card = page.locator("#tip")
    assert "accepted draft" in card.inner_text()
    assert re.search(r"draft margin \d", card.inner_text())
    assert "log-probability" in card.inner_text()
    shoot(page, "card")
    first = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.className").startswith("t ")
    assert page.evaluate("document.activeElement !== null"), first
    page.keyboard.press("Escape")
    assert not card.is_visible()


def test_replay_plays_the_speculation_step_by_step(open_page):
    """The slider walks through messages; the tree is drawn; at the end the text is the answer's."""
    page = open_page("dark")
    _ask(page)
    answer = "".join(page.locator(".assistant .t").all_inner_texts())
    slider = page.locator("#step")
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("#caption").inner_text().startswith("Step 1 of ")
    assert page.locator("#tree svg g").count() > 1
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    shoot(page, "replay")
    assert page.locator("#caption").inner_text().startswith("Step 5 of ")
    page.keyboard.press("End")
    assert "".join(page.locator("#sofar span").all_inner_texts()) == answer


def test_this_device_only_shows_as_unverified(open_page):
    """Without the cloud's word, every token is marked, and a note says so."""
    page = open_page("light")
    page.locator("[name=local_only]").check()
    _ask(page)
    assert page.locator(".assistant .t.unverified").count() == page.locator(".assistant .t").count() > 0
    assert "No target has confirmed" in page.locator(".assistant").inner_text()
    shoot(page, "unverified")


def test_themes_switch_and_stay(open_page):
    page = open_page("light")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
