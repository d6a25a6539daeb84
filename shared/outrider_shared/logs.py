"""Structured logs on standard error: one JSON object a line, or plain text for a person at a terminal.

Prompts and generated text are never logged.
"""

from __future__ import annotations

import logging
import os
import sys

import structlog


def configure_logs() -> None:
    """Set logging up for this process. OUTRIDER_LOG names the least level told (default: warning)."""
    level = logging.getLevelNamesMapping().get(os.environ.get("OUTRIDER_LOG", "warning").upper(), logging.WARNING)
    person = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if person else [structlog.processors.dict_tracebacks]),
            structlog.dev.ConsoleRenderer() if person else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
