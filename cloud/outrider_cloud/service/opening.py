"""Turns an `Open` into an engine request: the handshake and every check that needs no engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_cloud.engine.events import Pace, Request
from outrider_shared.coding import decode_tokens
from outrider_shared.errors import ContextError, MismatchError, ParameterError, UnknownModelError
from outrider_shared.ids import parse_session_id
from outrider_shared.logprobs import check_top_logprobs
from outrider_shared.packing import unpack_tokens
from outrider_shared.wire import PROTOCOL_VERSION, sampling_from_wire
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from outrider_cloud.model.loading import LoadedModel

_PACES = {
    pb.PACE_UNSPECIFIED: Pace.AUTO,
    pb.PACE_AHEAD: Pace.AHEAD,
    pb.PACE_HOLD: Pace.HOLD,
    pb.PACE_AUTO: Pace.AUTO,
}
_MAX_STOP_TOKENS = 64


def read_open(message: pb.Open, model: LoadedModel, prefix: tuple[int, ...] = ()) -> Request:
    """The request of an `Open`, whose prompt begins with `prefix`.

    Raises:
        ProtocolError: if the session id or a packed field is malformed.
        UnknownModelError: if another model is asked for.
        MismatchError: if protocol, vocabulary or tokenizer differ from ours; the message has both values.
        ParameterError: if a sampling parameter or a limit is out of its range.
        ContextError: if the prompt cannot fit the context.
    """
    session_id = parse_session_id(message.session_id)
    check_handshake(message, model)
    if message.max_tokens < 1:
        raise ParameterError(f"max_tokens is {message.max_tokens}", hint="ask for at least 1 token")
    if len(message.stop_token_ids) > _MAX_STOP_TOKENS:
        raise ParameterError(f"{len(message.stop_token_ids)} stop tokens", hint=f"at most {_MAX_STOP_TOKENS}")
    if message.pace not in _PACES:
        raise ParameterError(f"pace {message.pace} is unknown", hint="use PACE_AHEAD, PACE_HOLD or PACE_AUTO")
    check_top_logprobs(message.top_logprobs, logprobs=message.logprobs)
    params = sampling_from_wire(message.sampling)
    if message.min_tokens > message.max_tokens:
        raise ParameterError(f"min_tokens is {message.min_tokens}, max_tokens {message.max_tokens}")
    for name, length in (("prompt", len(prefix) + message.prompt_length), ("committed log", message.committed_length)):
        if length > model.context_length:
            raise ContextError(f"the {name} has {length} tokens", hint=f"the context holds {model.context_length}")
    return Request(
        session_id=session_id,
        prompt=prefix + _tail(message, model),
        committed=tuple(unpack_tokens(message.committed, message.committed_length, model.vocabulary)),
        max_tokens=message.max_tokens,
        params=params,
        stop=frozenset(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        pace=_PACES[message.pace],
        logprobs=message.logprobs,
        top_logprobs=message.top_logprobs,
        min_tokens=message.min_tokens,
        own_drafts=not message.no_cloud_drafts,
        report_refused=message.report_refused,
    )


def _tail(message: pb.Open, model: LoadedModel) -> tuple[int, ...]:
    count, coding = message.prompt_length, message.token_coding
    return decode_tokens(message.prompt, count, model.vocabulary, coding, model.tokenizer_sha256)


def check_handshake(message: pb.Open, model: LoadedModel) -> None:
    """Refuse a device whose protocol, model or tokenizer is not ours."""
    if message.protocol_version != PROTOCOL_VERSION:
        raise MismatchError(
            f"the device speaks protocol {message.protocol_version}, this service {PROTOCOL_VERSION}",
            hint="update the older side",
        )
    if message.model not in {"", model.name}:
        raise UnknownModelError(f"model {message.model[:80]!r} is not served here", hint=f"this is {model.name!r}")
    if message.vocabulary_size != model.vocabulary:
        raise MismatchError(
            f"the draft's vocabulary has {message.vocabulary_size} tokens, the target's {model.vocabulary}",
            hint="use a pack that was made for this target",
        )
    if message.tokenizer_sha256.hex() != model.tokenizer_sha256:
        theirs, ours = message.tokenizer_sha256.hex(), model.tokenizer_sha256
        raise MismatchError(
            f"the draft's tokenizer is {theirs[:16]}, the target's {ours[:16]}",
            hint="use a pack that was made for this target",
        )
