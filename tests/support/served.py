"""A fleet's service as its operator sees it: asked until it tells what is waited for."""

from __future__ import annotations

import time


def until(service, path: str, found, within_s: float = 120.0) -> dict:
    """The first answer at `path` that `found` takes."""
    end = time.monotonic() + within_s
    while not found(answer := service.ask(path)):
        assert time.monotonic() < end, answer
        time.sleep(0.05)
    return answer
