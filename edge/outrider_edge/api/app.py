"""The routes of the local endpoint."""

from __future__ import annotations

import contextlib
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

import structlog
from fastapi import FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from outrider_edge.api.asks import chat_ask, completion_ask, reporting
from outrider_edge.api.errors import error_response, response_of
from outrider_edge.api.guard import TOO_LARGE, Guard
from outrider_edge.api.metrics import CONTENT_TYPE
from outrider_edge.api.playground import add_playground
from outrider_edge.api.problems import validation_response
from outrider_edge.api.replies import Reply
from outrider_edge.api.schemas import ChatRequest, CompletionRequest, ErrorReply
from outrider_edge.api.streaming import DONE, EventStream, GoneError, failure, smoothed, sse, unless_gone
from outrider_shared.errors import InputError, OutriderError, UnknownModelError
from outrider_shared.version import version

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import ASGIApp

    from outrider_edge.api.asks import Ask
    from outrider_edge.api.choices import Delta, End
    from outrider_edge.api.config import EdgeConfig
    from outrider_edge.api.desk import Desk
    from outrider_edge.api.metrics import Metrics

_log = structlog.get_logger(__name__)
_GONE = 499  # as nginx says it: the client went before the answer; nobody reads it
# Of OpenAI's API and of other local servers; clients probe for them.
_ELSEWHERE = (
    "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/moderations", "/v1/images", "/v1/audio", "/v1/files",
    "/v1/batches", "/v1/fine_tuning", "/v1/rerank",
)  # fmt: skip
LocalOnly = Annotated[bool, Header(alias="X-Outrider-Local-Only", description="Nothing leaves the device.")]
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": about, "model": ErrorReply}
    for status, about in (
        (400, "The request cannot be done as it is."), (401, "A key is needed."),
        (403, "Host or origin is not allowed."), (404, "No such model."), (413, "Too large."),
        (429, "Too many at once."), (500, "A fault of the device or the cloud."),
        (503, "Loading, stopping, or no cloud."),
        (504, "The deadline passed."), ("default", "Any other fault."),
    )
}  # fmt: skip
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer: whole, or streamed as chunks and `[DONE]`.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}


def build_app(desk: Desk, config: EdgeConfig, metrics: Metrics, api_key: str = "") -> ASGIApp:
    """The ASGI application.

    Args:
        desk: Answers.
        config: Limits, defaults, who may ask.
        metrics: Where requests are counted.
        api_key: Empty asks for none.
    """
    app = FastAPI(title="Outrider edge", summary="An OpenAI-compatible endpoint that rides ahead of a cloud.",
                  docs_url=None, redoc_url=None)  # fmt: skip
    _add_errors(app)
    _add_answers(app, desk, config, metrics)
    _add_facts(app, desk, metrics)
    if config.serve.playground:
        add_playground(app)
    metrics.watch("sessions", "Answers being made", lambda: desk.slots.used)
    metrics.watch("queued_requests", "Requests that wait for a slot", lambda: desk.slots.queued)
    return Guard(app, config.serve, api_key, config.limits.body_bytes)


def _add_answers(app: FastAPI, desk: Desk, config: EdgeConfig, metrics: Metrics) -> None:
    defaults, stall_s = config.defaults, config.limits.stall_s

    async def respond(request: Request, ask: Ask, *, chat: bool, stream: bool) -> Response:
        route = "chat" if chat else "completions"
        reply = Reply(ask, desk.model_name(ask), desk.outfit.vocabulary, chat=chat)
        steps = desk.answer(ask)
        if ask.smooth and stream:
            steps = smoothed(steps)
        try:
            if stream:
                # Up to the first step, an error has a status of its own.
                first = await unless_gone(request.receive, anext(steps))
                metrics.requests.labels(route, "200").inc()
                return EventStream(_events(reply, first, steps), stall_s)
            body = await unless_gone(request.receive, _whole(reply, steps))
        except InputError as error:
            error.param = ask.field_of(error)
            raise
        except GoneError:
            await steps.aclose()
            metrics.requests.labels(route, str(_GONE)).inc()
            return Response(status_code=_GONE)
        metrics.requests.labels(route, "200").inc()
        if config.privacy.log_prompts:
            _log.info("answered", route=route, answer=reply.text)
        return JSONResponse(body)

    @app.post("/v1/chat/completions", responses=_ANSWERS | _ERRORS)
    async def chat(request: Request, body: ChatRequest, x_outrider_local_only: LocalOnly = False) -> Response:
        """Answer a conversation."""
        ask = chat_ask(body, desk.outfit, defaults, local_only=x_outrider_local_only, redact=desk.redact)
        ask = reporting(ask, body, agreed=config.privacy.report_refused)
        _note(config, ask, body)
        return await respond(request, ask, chat=True, stream=body.stream)

    @app.post("/v1/completions", responses=_ANSWERS | _ERRORS)
    async def complete(request: Request, body: CompletionRequest, x_outrider_local_only: LocalOnly = False) -> Response:
        """Continue a text."""
        ask = completion_ask(body, desk.outfit, defaults, local_only=x_outrider_local_only, redact=desk.redact)
        ask = reporting(ask, body, agreed=config.privacy.report_refused)
        _note(config, ask, body)
        return await respond(request, ask, chat=False, stream=body.stream)


def _note(config: EdgeConfig, ask: Ask, body: ChatRequest | CompletionRequest) -> None:
    more = {"body": body.model_dump(exclude_none=True)} if config.privacy.log_prompts else {}
    _log.info("asked", choices=len(ask.requests), prompt_tokens=ask.prompt_tokens, local_only=ask.local_only, **more)


async def _whole(reply: Reply, steps: AsyncGenerator[Delta | End]) -> dict[str, Any]:
    async with contextlib.aclosing(steps):
        async for step in steps:
            reply.take(step)
    return reply.body()


async def _events(reply: Reply, first: Delta | End, steps: AsyncGenerator[Delta | End]) -> AsyncGenerator[bytes]:
    try:
        async with contextlib.aclosing(steps):
            for chunk in (*reply.opening(), *reply.chunks(first)):
                yield sse(chunk)
            async for step in steps:
                for chunk in reply.chunks(step):
                    yield sse(chunk)
        for chunk in reply.closing():
            yield sse(chunk)
        yield DONE
    except Exception as error:  # noqa: BLE001 - the status is out; the stream has to say it
        if not isinstance(error, OutriderError):
            _log.exception("stream failed")
        yield failure(error)


def _add_facts(app: FastAPI, desk: Desk, metrics: Metrics) -> None:
    since = int(time.time())

    def card(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": since, "owned_by": "outrider"}

    @app.get("/v1/models", responses={503: _ERRORS[503]})
    async def models() -> dict[str, Any]:
        """Names under which answers can be asked for; any other name is answered by the first."""
        return {"object": "list", "data": [card(name) for name in await desk.models()]}

    @app.get("/v1/models/{model:path}", responses={status: _ERRORS[status] for status in (404, 503, "default")})
    async def one_model(model: str) -> dict[str, Any]:
        """One of them."""
        if model not in await desk.models():
            raise UnknownModelError(f"there is no model {model!r} here", hint="see /v1/models", param="model")
        return card(model)

    @app.get("/v1/health", include_in_schema=False)
    @app.get("/health", responses={503: _ERRORS[503]})
    async def health() -> Response:
        """200 when requests can be answered, 503 while loading or stopping."""
        if desk.ready:
            return JSONResponse({"status": "ok", "draft": desk.outfit.name})
        message = "stopping" if desk.draining else "Loading model"
        return error_response(503, message, "unavailable")

    @app.get("/version")
    async def running() -> dict[str, str]:
        """The version of this program."""
        return {"version": version()}

    @app.get("/outrider/status", responses={503: _ERRORS[503]})
    async def status() -> dict[str, Any]:
        """What is in use, and how far the cloud is."""
        return await desk.status()

    @app.get("/metrics", include_in_schema=False)
    async def figures() -> Response:
        """Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(OutriderError)
    async def ours(_: Request, error: OutriderError) -> Response:
        return response_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        if "json" not in request.headers.get("content-type", ""):
            message = "the body is not told to be JSON: send the header Content-Type: application/json"
            return error_response(HTTPStatus.BAD_REQUEST, message, "invalid_content_type")
        return validation_response(error.errors(), error.body)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == HTTPStatus.NOT_FOUND and path.startswith(_ELSEWHERE):
            message = f"{path} is not done here: a draft and its target only write text; use /v1/chat/completions"
            return error_response(HTTPStatus.NOT_IMPLEMENTED, message, "not_implemented")
        message, code = {
            HTTPStatus.NOT_FOUND: (f"there is no {path} here; /openapi.json lists what there is", "unknown_url"),
            HTTPStatus.METHOD_NOT_ALLOWED: (f"{path} does not take {request.method}", "method_not_supported"),
            HTTPStatus.BAD_REQUEST: ("the body is no JSON that can be read", "invalid_json"),
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (str(error.detail), TOO_LARGE),
        }.get(HTTPStatus(error.status_code), (str(error.detail), None))
        return error_response(error.status_code, message, code, headers=error.headers)

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> Response:
        _log.error("request failed", exc_info=error)
        return error_response(500, "something went wrong on this device; its log says what", "internal")
