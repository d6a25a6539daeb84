"""Does the exported graph compute what the model computes? Prefill, append, rewind and tree passes are compared.

An fp32 graph must agree with transformers' eager model within `TOLERANCE`. A quantised one cannot; it is held to agree
with *itself* over the different ways to compute a row, and its distance from the model on text that the model sampled
is measured: the total variation distance bounds the acceptance that quantisation costs.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import torch
import transformers

from outrider_shared.errors import ModelError
from outrider_shared.packs import Architecture, Precision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TOLERANCE = 1e-3  # of a logit, fp32
# Of total variation; beyond that something is broken.
_WORST_TV = {
    Precision.FP32: 1e-3,
    Precision.INT8_DYNAMIC: 0.3,
    Precision.INT8: 0.25,
    Precision.INT4: 0.6,
    Precision.INT4_ALL: 0.6,
}
_WORST_SPREAD = 0.02  # of the total variation between two ways to compute a row of a quantised graph
_WORST_DYNAMIC_SPREAD = 0.1  # likewise where the activations' scale is taken over all rows of a pass
_TRUNK, _APPENDED, _SAMPLED = 12, 4, 128
_PARENTS = (11, 11, 12, 12, 13, 15)  # parent slots of the tree's nodes, which sit in slots 12..17
_MASKED = -1e9


@dataclasses.dataclass(frozen=True)
class Report:
    """What the check measured.

    Attributes:
        positions: Number of sampled positions behind `tv` and `top1`.
        tv: Mean total variation distance between the graph's and the model's next-token distribution.
        top1: Share of positions where both have the same most likely token.
        max_logit_error: Largest difference of a logit over prefill, append, rewind and tree.
    """

    positions: int
    tv: float
    top1: float
    max_logit_error: float


def check_graph(graph: Path, source: Path, architecture: Architecture, precision: Precision) -> Report:
    """Compare an exported graph with its source model.

    Args:
        graph: The pack's model.onnx.
        source: The Hugging Face folder that it was made from.
        architecture: Shapes of the graph.
        precision: How its weights are stored.

    Raises:
        ModelError: They differ by more than the precision explains.
    """
    model = _load_model(source)
    passes = _Passes(graph, architecture)
    pairs = _structure(model, passes, architecture)
    error = max(float(np.abs(got - want).max()) for got, want in pairs.values())
    if precision is Precision.FP32:
        for name, (got, want) in pairs.items():
            if not np.abs(got - want).max() <= TOLERANCE:
                raise ModelError(f"{name} differs from the model by {np.abs(got - want).max():.2g}, over {TOLERANCE:g}")
    else:
        dynamic = precision is Precision.INT8_DYNAMIC
        _check_spread(passes, architecture, _WORST_DYNAMIC_SPREAD if dynamic else _WORST_SPREAD)
    tokens, want = _sample(model, min(_SAMPLED, architecture.context_length - 1))
    got = passes.run(tokens, 0)
    report = Report(len(tokens), _tv(got, want), float((got.argmax(-1) == want.argmax(-1)).mean()), error)
    if not report.tv <= _WORST_TV[precision]:
        raise ModelError(f"the {precision} graph is {report.tv:.3f} in total variation away from the model")
    return report


class _Passes:
    """The graph, run with plain arrays: the whole cache goes in and comes out, which is slow and simple."""

    def __init__(self, graph: Path, architecture: Architecture) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        shape = (1, architecture.kv_heads, min(architecture.context_length, 256), architecture.head_dim)
        sides = [f"{layer}.{side}" for layer in range(architecture.layers) for side in ("key", "value")]
        self._cache = {side: np.zeros(shape, np.float32) for side in sides}

    def run(self, tokens: Sequence[int], start: int, parents: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Logits [count, vocab_size] of `tokens` in slots start, start + 1, ...; slots below `start` are a chain."""
        count, total = len(tokens), start + len(tokens)
        positions, bias = np.arange(start, total), np.zeros((count, total), np.float32)
        if parents is not None:
            bias[:, start:] = _MASKED
            for row, parent in enumerate(parents):
                if parent >= start:
                    bias[row] = bias[parent - start]
                bias[row, start + row] = 0
                positions[row] = 1 + (positions[parent - start] if parent >= start else parent)
        feeds: dict[str, Any] = {
            "input_ids": np.array([tokens], np.int64),
            "position_ids": positions[None],
            "attention_bias": bias[None, None],
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array(total, np.int32),
            "logits_rows": np.arange(count),
            **{f"past_key_values.{side}": array for side, array in self._cache.items()},
        }
        logits, *present = self._session.run(["logits", *(f"present.{side}" for side in self._cache)], feeds)
        self._cache = dict(zip(self._cache, present, strict=True))
        return np.asarray(logits[0], np.float32)


def _load_model(source: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
        )
    return model.eval()


def _structure(
    model: Any, passes: _Passes, architecture: Architecture
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """(graph's logits, model's logits) of each kind of pass."""
    tokens = _tokens(architecture, 2 * _TRUNK)
    trunk, appended, other, nodes = tokens[:_TRUNK], tokens[12:16], tokens[16:20], tokens[18:24]
    wanted_tree = [_logits(model, trunk + path)[-1] for path in _root_paths(nodes)]
    return {
        "prefill": (passes.run(trunk, 0), _logits(model, trunk)),
        "append": (passes.run(appended, _TRUNK), _logits(model, trunk + appended)[_TRUNK:]),
        "rewind": (passes.run(other, _TRUNK - 2), _logits(model, trunk[:-2] + other)[_TRUNK - 2 :]),
        "refill": (passes.run(trunk[-2:], _TRUNK - 2), _logits(model, trunk)[-2:]),
        "tree": (passes.run(nodes, _TRUNK, _PARENTS), np.stack(wanted_tree)),
    }


def _check_spread(passes: _Passes, architecture: Architecture, worst: float) -> None:
    tokens = _tokens(architecture, 2 * _TRUNK)
    trunk, nodes = tokens[:_TRUNK], tokens[18:24]
    passes.run(trunk, 0)
    tree = passes.run(nodes, _TRUNK, _PARENTS)
    chains = np.stack([passes.run(path, _TRUNK)[-1] for path in _root_paths(nodes)])
    spread = _tv(tree, chains)
    if not spread <= worst:
        raise ModelError(f"a tree pass and a chain of the same tokens are {spread:.3f} apart in total variation")


def _root_paths(nodes: Sequence[int]) -> list[list[int]]:
    paths: list[list[int]] = []
    for token, parent in zip(nodes, _PARENTS, strict=True):
        paths.append([*(paths[parent - _TRUNK] if parent >= _TRUNK else []), token])
    return paths


def _tokens(architecture: Architecture, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(0, architecture.vocab_size, count)]


def _logits(model: Any, tokens: Sequence[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(model(torch.tensor([list(tokens)])).logits[0].float().numpy())


def _sample(model: Any, count: int) -> tuple[list[int], NDArray[np.float32]]:
    """Tokens [count] that the model samples after its first token, and its logits [count, vocab_size] after each."""
    generator = torch.Generator().manual_seed(0)
    tokens, logits, past = [_first_token(model.config)], [], None
    with torch.no_grad():
        while True:
            out = model(torch.tensor([tokens[-1:]]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            logits.append(out.logits[0, -1].float())
            if len(tokens) == count:
                return tokens, torch.stack(logits).numpy()
            tokens.append(int(torch.multinomial(torch.softmax(logits[-1], -1), 1, generator=generator)))


def _first_token(config: Any) -> int:
    """What a text begins with; where the model has no such token, what the text before it ended with."""
    known = (config.bos_token_id, config.eos_token_id, 0)
    first = next(token for token in known if token is not None and token != [])
    return int(first[0] if isinstance(first, list) else first)


def _tv(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    both = [torch.softmax(torch.from_numpy(logits).double(), -1) for logits in (one, other)]
    return float((both[0] - both[1]).abs().sum(-1).mean() / 2)
