"""Stands in for structlog on a bare machine where it is missing: logs are dropped, everything else runs.

`run.py` names this folder only where there is no real one.
"""

from __future__ import annotations

from typing import Any


class _Anything:
    """Takes every call and has every attribute."""

    def __getattr__(self, _: str) -> _Anything:
        return self

    def __call__(self, *_: Any, **__: Any) -> _Anything:
        return self


contextvars = processors = dev = _Anything()
configure = get_logger = make_filtering_bound_logger = PrintLoggerFactory = _Anything()
