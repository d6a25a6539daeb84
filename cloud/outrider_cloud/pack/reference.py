"""The model that a pack is made from, as transformers runs it: its logits, text that it samples, distances to it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def load_model(source: Path) -> Any:
    """The model of a Hugging Face folder in fp32, its attention written out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
        )
    return model.eval()


def logits_of(model: Any, tokens: Sequence[int]) -> NDArray[np.float32]:
    """[len(tokens), vocab_size] after each of the tokens."""
    with torch.no_grad():
        return np.asarray(model(torch.tensor([list(tokens)])).logits[0].float().numpy())


def sample(model: Any, texts: int, count: int, seed: int) -> tuple[list[list[int]], NDArray[np.float32]]:
    """Texts [texts][count] that the model samples after its first token, and its logits [texts, count, vocab_size]."""
    generator = torch.Generator().manual_seed(seed)
    tokens, logits, past = torch.full((texts, 1), first_token(model.config)), [], None
    with torch.no_grad():
        while True:
            out = model(tokens[:, -1:], past_key_values=past, use_cache=True)
            past = out.past_key_values
            logits.append(out.logits[:, -1].float())
            if tokens.shape[1] == count:
                return tokens.tolist(), torch.stack(logits, 1).numpy()
            chosen = torch.multinomial(torch.softmax(logits[-1], -1), 1, generator=generator)
            tokens = torch.cat([tokens, chosen], 1)


def first_token(config: Any) -> int:
    """What a text begins with; where the model has no such token, what the text before it ended with."""
    known = (config.bos_token_id, config.eos_token_id, 0)
    first = next(token for token in known if token is not None and token != [])
    return int(first[0] if isinstance(first, list) else first)


def total_variation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean over rows of the distance between the distributions of logits [rows, vocab_size]."""
    both = [torch.softmax(torch.from_numpy(logits).double(), -1) for logits in (one, other)]
    return float((both[0] - both[1]).abs().sum(-1).mean() / 2)


def divergence(model: NDArray[np.float32], graph: NDArray[np.float32]) -> float:
    """Mean over rows of KL(model, graph) in nats, of logits [rows, vocab_size]."""
    p, q = (torch.log_softmax(torch.from_numpy(logits).double(), -1) for logits in (model, graph))
    return float((p.exp() * (p - q)).sum(-1).mean())
