"""Between protobuf messages and our own types, with every check that a field from the wire needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_shared.errors import DraftError, GrammarError, OutriderError, ParameterError, error_from_code
from outrider_shared.grammar import Grammar, GrammarKind
from outrider_shared.packing import pack_tokens, pack_varints, token_bits, unpack_tokens, unpack_varints
from outrider_shared.sampling import SamplingParams
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_shared.tree import DraftTree, Node

PROTOCOL_VERSION = 1
SERVICE = "outrider_wire.v1.Verifier"
# gRPC's 5-byte message prefix and HTTP/2's 9-byte frame header, added when bytes are told to users.
FRAME_BYTES = 14
MAX_MESSAGE_BYTES = 1 << 20
# Pending nodes, and nodes in a message, that every service takes before `Opened` told its own bounds.
NODES_BEFORE_OPENED = 64
_KINDS = {
    GrammarKind.JSON_OBJECT: pb.GRAMMAR_KIND_JSON_OBJECT,
    GrammarKind.JSON_SCHEMA: pb.GRAMMAR_KIND_JSON_SCHEMA,
    GrammarKind.REGEX: pb.GRAMMAR_KIND_REGEX,
    GrammarKind.LARK: pb.GRAMMAR_KIND_LARK,
}


def sampling_to_wire(params: SamplingParams) -> pb.Sampling:
    """The message of sampling parameters."""
    return pb.Sampling(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=None if params.repetition_penalty == 1.0 else params.repetition_penalty,
        bias_tokens=[token for token, _ in params.logit_bias],
        biases=[bias for _, bias in params.logit_bias],
    )


def sampling_from_wire(message: pb.Sampling) -> SamplingParams:
    """Validated sampling parameters.

    Raises:
        ParameterError: if one is out of its range.
    """
    if len(message.bias_tokens) != len(message.biases):
        raise ParameterError(f"{len(message.biases)} biases came for {len(message.bias_tokens)} tokens")
    return SamplingParams(
        message.temperature,
        message.top_k,
        message.top_p if message.HasField("top_p") else 1.0,
        message.min_p,
        message.seed,
        message.presence_penalty,
        message.frequency_penalty,
        message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
        tuple(zip(message.bias_tokens, message.biases, strict=True)),
    )


def grammar_to_wire(grammar: Grammar | None) -> pb.Grammar | None:
    """The message of a grammar; None for free text."""
    return None if grammar is None else pb.Grammar(kind=_KINDS[grammar.kind], text=grammar.text)


def grammar_from_wire(message: pb.Grammar) -> Grammar:
    """A grammar whose form was checked; whether it can be followed, only its compiler knows.

    Raises:
        GrammarError: if its kind is unknown, or its text too long or not of that kind.
    """
    kind = next((kind for kind, value in _KINDS.items() if value == message.kind), None)
    if kind is None:
        raise GrammarError(f"grammar kind {message.kind} is unknown", hint="update the older side")
    return Grammar(kind, message.text)


def draft_to_wire(nodes: Sequence[Node], last_sent: int, vocabulary: int, *, more: bool = False) -> pb.Draft:
    """A `Draft` of nodes with consecutive numbers from `last_sent` + 1 on.

    Nodes that hang on the log must all hang at the same position (one burst starts at one frontier).
    """
    deltas = [0 if n.parent is None else n.number - n.parent.number for n in nodes]
    anchors = {n.position for n in nodes if n.parent is None}
    tokens = pack_tokens([n.token for n in nodes], vocabulary)
    message = pb.Draft(
        tokens=tokens,
        count=0 if _implied_count(tokens, vocabulary) == len(nodes) else len(nodes),
        anchor=anchors.pop() if anchors else None,
        more=more,
    )
    if anchors:
        raise DraftError(f"one message cannot hang nodes at several log positions ({sorted(anchors)} and another)")
    if [n.number for n in nodes] != list(range(last_sent + 1, last_sent + 1 + len(nodes))):
        raise DraftError(f"nodes {[n.number for n in nodes]} do not follow node {last_sent}")
    if any(delta != 1 for delta in deltas[1:]) or deltas[0] > 1:
        message.parents = pack_varints(deltas)
    return message


def draft_count(message: pb.Draft, vocabulary: int) -> int:
    """How many nodes a `Draft` says that it has."""
    return message.count or _implied_count(message.tokens, vocabulary)


def _implied_count(tokens: bytes, vocabulary: int) -> int:
    return len(tokens) * 8 // token_bits(vocabulary)


def append_draft(tree: DraftTree, message: pb.Draft, vocabulary: int) -> list[Node]:
    """Append the nodes of a `Draft` to a tree, numbered as the edge numbers them.

    Raises:
        ProtocolError: if the packed fields are malformed.
        DraftError: if a parent or the anchor does not exist.
    """
    count = draft_count(message, vocabulary)
    tokens = unpack_tokens(message.tokens, count, vocabulary)
    anchor = message.anchor if message.HasField("anchor") else None
    if message.parents:
        deltas = unpack_varints(message.parents, count)
    else:
        deltas = [1] * count
        if anchor is not None and deltas:
            deltas[0] = 0
    return [_append(tree, token, delta, anchor) for token, delta in zip(tokens, deltas, strict=True)]


def _append(tree: DraftTree, token: int, delta: int, anchor: int | None) -> Node:
    if delta:
        return tree.append(token, tree.node(len(tree) - delta))
    if anchor is None:
        raise DraftError("a node hangs on the log, but the message has no anchor")
    return tree.append(token, None, anchor)


def error_to_wire(error: OutriderError, retry_after_ms: int = 0) -> pb.Error:
    """The message of an error."""
    return pb.Error(
        code=error.code,
        message=error.message,
        hint=error.hint,
        retryable=error.retryable,
        retry_after_ms=retry_after_ms,
    )


def error_from_wire(message: pb.Error) -> OutriderError:
    """The typed error of a message."""
    return error_from_code(message.code, message.message, hint=message.hint)
