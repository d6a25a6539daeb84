"""What the engine refuses, with the reason: requests that could never run, and trees beyond their bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_shared.errors import ContextError, DraftError, LimitError, ParameterError, PromptError

if TYPE_CHECKING:
    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.events import Request
    from outrider_cloud.engine.session import Session
    from outrider_cloud.model.loading import LoadedModel

# Dead nodes keep their number, so a stream's nodes are bounded even if none of them is ever pending for long.
_NODES_PER_TOKEN = 64


def check_request(request: Request, loaded: LoadedModel, config: EngineConfig) -> None:
    """Refuse what this model, or this much KV memory, can never run.

    Raises:
        ParameterError: if a bias is outside the vocabulary, or a grammar comes with what contradicts it.
        PromptError: if the prompt is empty, too long, or holds a token outside the vocabulary.
        LimitError: if prompt and answer do not fit into the KV memory even alone.
    """
    if request.matcher is not None and (request.ignore_eos or request.min_tokens):
        raise ParameterError("a grammar decides where the answer ends", hint="leave out ignore_eos and min_tokens")
    if request.params.logit_bias and (token := request.params.logit_bias[-1][0]) >= loaded.vocabulary:
        raise ParameterError(f"logit_bias names token {token}, the vocabulary has {loaded.vocabulary}")
    length, log = loaded.context_length, (*request.prompt, *request.committed)
    if not request.prompt:
        raise PromptError("the prompt is empty", hint="send at least one token")
    if len(request.prompt) >= length:
        raise ContextError(f"the prompt has {len(request.prompt)} tokens", hint=f"the context holds {length}")
    if len(log) > length:
        raise ContextError(f"prompt and committed tokens are {len(log)}", hint=f"the context holds {length}")
    outside = [token for token in log if not 0 <= token < loaded.vocabulary]
    if outside:
        raise PromptError(f"token id {outside[0]} is outside the vocabulary of {loaded.vocabulary}")
    most = min(len(request.prompt) + request.max_tokens, length)
    if most > config.blocks * config.block_size:
        raise LimitError(
            f"prompt and answer need KV for {most} tokens, the pool holds {config.kv_tokens}",
            hint="ask for fewer tokens, or serve with a larger --kv-tokens",
        )


def check_tree(session: Session, config: EngineConfig) -> None:
    """Bound the nodes of a session.

    Raises:
        DraftError: if too many are pending, or were sent in all.
    """
    pending, most = session.tree.pending, config.max_nodes
    if pending > most:
        raise DraftError(f"{pending} draft nodes are pending", hint=f"at most {most} may be")
    sent, allowed = len(session.tree), most + _NODES_PER_TOKEN * session.request.max_tokens
    if sent > allowed:
        raise DraftError(
            f"{sent} nodes were drafted for an answer of at most {session.request.max_tokens} tokens",
            hint=f"at most {allowed} are taken on one stream",
        )
