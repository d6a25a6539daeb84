"""The first message of a stream: what is asked, and what a resume needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_edge.session.events import Pace
from outrider_shared.coding import encode_tokens
from outrider_shared.packing import pack_tokens
from outrider_shared.prefix import prefix_digest
from outrider_shared.wire import PROTOCOL_VERSION, grammar_to_wire, sampling_to_wire
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from outrider_edge.session.memory import Prefix
    from outrider_edge.session.state import SessionState
    from outrider_shared.ids import SessionId

_PACES = {Pace.AHEAD: pb.PACE_AHEAD, Pace.HOLD: pb.PACE_HOLD, Pace.AUTO: pb.PACE_AUTO}


def open_message(
    state: SessionState, session_id: SessionId, tokenizer_sha256: str, prefix: Prefix | None = None
) -> pb.Open:
    """`Open` for a session as it stands.

    Args:
        state: The session.
        session_id: Its name on this stream.
        tokenizer_sha256: Fingerprint of the device's tokenizer, hex.
        prefix: The part of the prompt that the cloud may still have; None sends all of it.
    """
    request, committed = state.request, state.committed
    known = request.prompt[: prefix.length] if prefix is not None else ()
    tail = request.prompt[len(known) :]
    coding, prompt = encode_tokens(tail, state.vocabulary, tokenizer_sha256)
    return pb.Open(
        session_id=session_id,
        protocol_version=PROTOCOL_VERSION,
        tokenizer_sha256=bytes.fromhex(tokenizer_sha256),
        vocabulary_size=state.vocabulary,
        sampling=sampling_to_wire(request.params),
        max_tokens=request.max_tokens,
        stop_token_ids=request.stop,
        ignore_eos=request.ignore_eos,
        pace=_PACES[request.pace],
        prompt=prompt,
        prompt_length=len(tail),
        token_coding=coding,
        prefix=b"" if prefix is None else prefix.key,
        prefix_length=len(known),
        prefix_digest=b"" if prefix is None else prefix_digest(prefix.key, known),
        committed=pack_tokens(committed, state.vocabulary),
        committed_length=len(committed),
        lease=state.lease,
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
        min_tokens=request.min_tokens,
        grammar=grammar_to_wire(request.grammar),
        no_cloud_drafts=not request.cloud_drafts,
        report_refused=request.report_refused,
    )
