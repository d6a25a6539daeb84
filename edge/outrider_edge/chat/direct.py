"""Answers without a daemon: its desk in this process, riding ahead of the cloud itself."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from outrider_edge.api.asks import chat_ask
from outrider_edge.api.daemon import open_device
from outrider_edge.api.desk import Desk
from outrider_edge.api.metrics import Metrics
from outrider_edge.api.replies import Reply
from outrider_edge.api.schemas import ChatRequest
from outrider_shared.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_edge.api.config import EdgeConfig
    from outrider_edge.chat.answerer import Chunk


class Direct:
    """A device of our own; see `Answerer`.

    Args:
        config: As the daemon would have it.

    Raises:
        OutriderError: if the pack is damaged, or a TLS file cannot be read.
    """

    def __init__(self, config: EdgeConfig) -> None:
        self._defaults = config.defaults
        self._desk = Desk(config.limits, Metrics(), config.privacy)
        self._runner = asyncio.Runner()
        self._device = open_device(config)
        self._runner.run(self._device.__aenter__())
        self._desk.wear(self._device)

    def answer(self, body: dict[str, Any], take: Callable[[Chunk], None]) -> None:
        """See `Answerer`."""
        try:
            asked = ChatRequest.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ParameterError(f"{place}: {first['msg']}") from error
        self._runner.run(self._answer(asked, take))

    async def _answer(self, asked: ChatRequest, take: Callable[[Chunk], None]) -> None:
        ask = chat_ask(asked, self._desk.outfit, self._defaults, redact=self._desk.redact)
        reply = Reply(ask, self._desk.model_name(ask), self._desk.outfit.vocabulary, chat=True)
        async with contextlib.aclosing(self._desk.answer(ask)) as steps:
            async for step in steps:
                for chunk in reply.chunks(step):
                    take(chunk)
        for chunk in reply.closing():
            take(chunk)

    def status(self) -> dict[str, Any]:
        """See `Answerer`."""
        return self._runner.run(self._desk.status())

    def close(self) -> None:
        """Close the way to the cloud."""
        self._runner.run(self._device.__aexit__(None, None, None))
        self._runner.close()
