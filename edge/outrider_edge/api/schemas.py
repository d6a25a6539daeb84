"""What may be asked of the endpoint: OpenAI's fields, the sampling fields that local servers add, and our own.

Unknown fields are ignored, as other servers do: clients send many that mean nothing here. Fields that would change the
answer and cannot be honoured are refused in `asks.py`, never ignored. A null is a field that was left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from outrider_edge.session.events import Pace  # noqa: TC001 - pydantic reads the types
from outrider_edge.session.offline import OfflineMode  # noqa: TC001 - as above

MAX_STOPS, MAX_STOP_CHARACTERS, MAX_CHOICES, MAX_TOP_LOGPROBS = 16, 512, 16, 20
StopText = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]
Int31 = Annotated[int, Field(ge=0, lt=1 << 31)]


class Model(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class ErrorTold(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Body of an answer that is none."""

    error: ErrorTold


class Part(Model):
    """One part of a message."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Model):
    """Which function, and its arguments as JSON text."""

    name: str
    arguments: str = "{}"


class ToolCall(Model):
    """A call that the assistant made."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Model):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(Model):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Model):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(Model):
    """The name of a function."""

    name: str


class NamedTool(Model):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(Model):
    """How to stream."""

    include_usage: bool = False


class JsonSchema(Model):
    """The schema that an answer must fit."""

    name: str = ""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Model):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class Outrider(Model):
    """Our own switches; see docs/edge.md."""

    details: bool = Field(False, description="Tell each token's origin and each drafted node, in `outrider` of chunks.")
    pace: Pace | None = None
    drafter: Literal["mixed", "model", "lookup", "none"] | None = None
    local_only: bool = Field(False, description="Never leave the device: the draft model answers alone.")
    offline: OfflineMode | None = Field(None, description="What to do while the cloud cannot be reached.")
    smooth: bool | None = Field(None, description="Spread bursts of tokens evenly.")
    report_refused: bool | None = Field(None, description="False: nothing of this request is kept for training.")


class Common(Model):
    """Fields that both endpoints have; those that are unknown stay in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    min_tokens: Int31 | None = None
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None
    outrider: Outrider | None = None


class ChatRequest(Common):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(Common):
    """Body of /v1/completions."""

    prompt: str | list[str] | list[Int31] | list[list[Int31]]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None
