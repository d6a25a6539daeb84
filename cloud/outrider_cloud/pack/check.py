"""Does the exported graph compute what the model computes? Prefill, append, rewind and tree passes are compared.

An fp32 graph must agree with transformers' eager model within `TOLERANCE`. A quantised one cannot; it is held to agree
with *itself* over the different ways to compute a row, and its distance from the model on text that the model sampled
is measured: the total variation distance bounds the acceptance that quantisation costs.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider_cloud.pack.passes import Passes
from outrider_cloud.pack.reference import load_model, logits_of, sample, total_variation
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
    model = load_model(source)
    passes = Passes(graph, architecture)
    pairs = _structure(model, passes, architecture)
    error = max(float(np.abs(got - want).max()) for got, want in pairs.values())
    if precision is Precision.FP32:
        for name, (got, want) in pairs.items():
            if not np.abs(got - want).max() <= TOLERANCE:
                raise ModelError(f"{name} differs from the model by {np.abs(got - want).max():.2g}, over {TOLERANCE:g}")
    else:
        dynamic = precision is Precision.INT8_DYNAMIC
        _check_spread(passes, architecture, _WORST_DYNAMIC_SPREAD if dynamic else _WORST_SPREAD)
    (tokens,), (want,) = sample(model, 1, min(_SAMPLED, architecture.context_length - 1), seed=0)
    got = passes.run(tokens, 0)
    report = Report(len(tokens), total_variation(got, want), float((got.argmax(-1) == want.argmax(-1)).mean()), error)
    if not report.tv <= _WORST_TV[precision]:
        raise ModelError(f"the {precision} graph is {report.tv:.3f} in total variation away from the model")
    return report


def _structure(
    model: Any, passes: Passes, architecture: Architecture
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """(graph's logits, model's logits) of each kind of pass."""
    tokens = _tokens(architecture, 2 * _TRUNK)
    trunk, appended, other, nodes = tokens[:_TRUNK], tokens[12:16], tokens[16:20], tokens[18:24]
    wanted_tree = [logits_of(model, trunk + path)[-1] for path in _root_paths(nodes)]
    return {
        "prefill": (passes.run(trunk, 0), logits_of(model, trunk)),
        "append": (passes.run(appended, _TRUNK), logits_of(model, trunk + appended)[_TRUNK:]),
        "rewind": (passes.run(other, _TRUNK - 2), logits_of(model, trunk[:-2] + other)[_TRUNK - 2 :]),
        "refill": (passes.run(trunk[-2:], _TRUNK - 2), logits_of(model, trunk)[-2:]),
        "tree": (passes.run(nodes, _TRUNK, _PARENTS), np.stack(wanted_tree)),
    }


def _check_spread(passes: Passes, architecture: Architecture, worst: float) -> None:
    tokens = _tokens(architecture, 2 * _TRUNK)
    trunk, nodes = tokens[:_TRUNK], tokens[18:24]
    passes.run(trunk, 0)
    tree = passes.run(nodes, _TRUNK, _PARENTS)
    chains = np.stack([passes.run(path, _TRUNK)[-1] for path in _root_paths(nodes)])
    spread = total_variation(tree, chains)
    if not spread <= worst:
        raise ModelError(f"a tree pass and a chain of the same tokens are {spread:.3f} apart in total variation")


def _root_paths(nodes: Sequence[int]) -> list[list[int]]:
    paths: list[list[int]] = []
    for token, parent in zip(nodes, _PARENTS, strict=True):
        paths.append([*(paths[parent - _TRUNK] if parent >= _TRUNK else []), token])
    return paths


def _tokens(architecture: Architecture, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(0, architecture.vocab_size, count)]
