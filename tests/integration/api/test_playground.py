"""The playground in a real Chromium, against the real daemon. Screenshots are kept under build/screenshots."""

from __future__ import annotations

import re

import pytest

from support.browser import VIEWS, Pages, chromium, fits, needs_chromium, shoot
from support.daemon import cloud, daemon

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


# Each class of text that the page can show, with the contrast to what lies behind it (WCAG 2.2, relative luminance).
CONTRASTS = """() => {
  const box = document.body.appendChild(document.createElement("div"));
  box.style.background = getComputedStyle(document.querySelector("#talk")).backgroundColor;
  const light = (color) => color.match(/[\\d.]+/g).slice(0, 3)
    .map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const found = {};
  for (const name of ["accepted", "correction", "bonus", "cloud", "cloud-lookup", "cloud-draft",
                      "unverified", "note", "note bad"]) {
    const span = box.appendChild(document.createElement("span"));
    span.className = name;
    const { color, backgroundColor } = getComputedStyle(span);
    const behind = /, 0\\)$/.test(backgroundColor) ? box.style.background : backgroundColor;
    const [low, high] = [light(color), light(behind)].sort((a, b) => a - b);
    found[name] = (high + 0.05) / (low + 0.05);
  }
  box.remove();
  return found;
}"""


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
    assert float(told["Tokens per step"]) > 1
    assert told["RTT"].endswith("ms")
    assert fits(page)
    shoot(page, view, whole=view == "phone")


@pytest.mark.parametrize("view", list(VIEWS))
def test_fresh_page_is_readable_and_a_new_chat_brings_it_back(open_page, view):
    """All of it on the screen, each colour of text at least 4.5 to 1 (WCAG AA); so again after an answer."""
    page = open_page(view)
    page.locator("#where.up").wait_for()
    assert fits(page)
    assert page.evaluate("(log => log.scrollWidth <= log.clientWidth)(document.querySelector('#log'))")
    shoot(page, f"fresh-{view}")
    assert min(page.evaluate(CONTRASTS).values()) >= 4.5, page.evaluate(CONTRASTS)
    before = page.locator("#talk").inner_text()
    _ask(page)
    page.click("#fresh")
    assert page.locator("#talk").inner_text() == before
    assert page.locator("#step").is_disabled()
    assert page.evaluate("document.activeElement.id") == "words"


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
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.textContent") == first
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement === document.querySelector('.assistant .t:last-of-type')")
    assert page.locator(".assistant .t[tabindex='0']").count() == 1, "one stop of the Tab key for a whole answer"
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


def test_long_answer_is_followed_and_replayed(open_page):
    """As long as the context allows: its end stays in sight; replayed back and forth, each step has its own text."""
    page = open_page("light")
    for name, value in {"system": "", "temperature": 5, "max_tokens": 400}.items():
        page.fill(f"[name={name}]", str(value))
    page.fill("#words", "Tell me all about it.")
    page.keyboard.press("Enter")
    page.locator("#step:enabled").wait_for(timeout=120_000)
    assert (
        page.evaluate("(log => log.scrollHeight - log.scrollTop - log.clientHeight)(document.querySelector('#log'))")
        < 2
    )
    answer = page.locator(".assistant .t").all_text_contents()
    assert len(answer) > 50
    last = int(page.locator("#step").get_attribute("max"))
    told = []
    for step in (last, last // 2, last // 3, last // 2, last):
        page.evaluate("([it, to]) => { it.value = to; it.oninput() }", [page.query_selector("#step"), step])
        told.append(page.locator("#sofar span").all_text_contents())
    assert told[0] == told[4] == answer
    assert told[1] == told[3] == answer[: len(told[1])]
    assert 0 < len(told[2]) < len(told[1]) < len(answer)


def test_this_device_only_shows_as_unverified(open_page):
    """Without the cloud's word, every token is marked, and a note says so."""
    page = open_page("light")
    page.locator("[name=local_only]").check()
    _ask(page)
    assert page.locator(".assistant .t.unverified").count() == page.locator(".assistant .t").count() > 0
    assert "No target has confirmed" in page.locator(".assistant").inner_text()
    shoot(page, "unverified")


def test_cloud_that_goes_away_is_told_and_its_absence_marked(browser, tmp_path):
    """An answer streams in, the cloud dies: what the device drafts alone is marked; Escape stops it."""
    with (
        cloud(tmp_path, "--pace-step-ms", "800") as target,
        daemon(tmp_path, target.address, "--offline", "draft", OUTRIDER_EDGE_CLOUD_OFFLINE_AFTER_S="0.5") as device,
    ):
        pages = Pages(browser, device.address)
        page = pages.open("dark")
        page.fill("#words", "Turn off the kitchen light, please.")
        page.keyboard.press("Enter")
        page.locator(".assistant .t").first.wait_for(timeout=120_000)
        shoot(page, "streaming")
        target.process.kill()
        page.locator(".assistant .t.unverified").first.wait_for(timeout=120_000)
        page.locator("#where.down").wait_for()
        assert "The cloud is away" in page.locator(".assistant").inner_text()
        assert "<|" not in page.locator(".assistant").inner_text(), "control tokens are no text"
        shoot(page, "offline")
        page.keyboard.press("Escape")
        page.locator("#send", has_text="Send").wait_for()
        assert "stopped" in page.locator(".assistant").inner_text()
        pages.close()
        assert pages.complaints == []


def test_themes_switch_and_stay(open_page):
    page = open_page("light")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
