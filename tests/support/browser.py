"""Chromium, and pages whose complaints fail the test: console, uncaught errors, requests to another host."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page, Request

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SHOTS = Path("build") / "screenshots"
SLOW_MS = 60_000
VIEWS = {"light": (1280, 860, "light"), "dark": (1280, 860, "dark"), "phone": (390, 844, "dark")}

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A running one."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Pages:
    """Opens pages of one host.

    Attributes:
        complaints: All that was said against them; empty at the end of a good test.
    """

    def __init__(self, browser: Browser, address: str) -> None:
        self._browser, self._address = browser, address
        self._opened: list[Page] = []
        self.complaints: list[str] = []

    def open(self, view: str = "light") -> Page:
        """A fresh page, with storage of its own."""
        width, height, scheme = VIEWS[view]
        page = self._browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda said: self._complain(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self._complain(str(error)))
        page.on("request", self._watch)
        page.goto(self._address)
        self._opened.append(page)
        return page

    def close(self) -> None:
        """All of them."""
        for page in self._opened:
            page.close()

    def _watch(self, request: Request) -> None:
        if not request.url.startswith((self._address, "data:,")):
            self._complain(f"asked for {request.url}")

    def _complain(self, what: str) -> None:
        self.complaints.append(what)


def shoot(page: Page, name: str, *, whole: bool = False) -> None:
    """Keep a picture, for people to look at."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=whole)


def fits(page: Page) -> bool:
    """Whether nothing of the page lies beside the screen."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def until(page: Page, look: str, found: Callable[[Any], bool] = bool) -> Any:
    """What a look at the page gives once it is so. Playwright's own waiting runs text, which the policy forbids."""
    for _ in range(SLOW_MS // 100):
        if found(seen := page.evaluate(look)):
            return seen
        page.wait_for_timeout(100)
    raise AssertionError(f"{look} is still {seen!r}")


def changes(page: Page, look: str) -> tuple[Any, Any]:
    """Waits until a look at the page gives something else, with nobody touching it."""
    before = page.evaluate(look)
    return before, until(page, look, lambda now: now != before)
