"""Our own forward over a Hugging Face model's weights, for the families that all large deployments use.

Llama, Mistral, Qwen2 and Qwen3 share one decoder layer: norm, one projection to queries, keys and values, rotary
embedding, attention, output, norm, gated MLP. Here it is with the fused kernels of a platform, on flat rows: about ten
launches a layer in place of forty. Everything else is served by the model's own forward (`model.attention`).

Weights are shared, not copied: the fused projections are one tensor of which the model's own become views. Output, down
projection and head are called as the model's modules, so shards of them (`parallel`) need no further code here; fused
projections are one product for each of our shards, since a shard's bits must not depend on how many a rank has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from outrider_cloud.kernels.layers import Rotation
from outrider_cloud.parallel.layers import ColumnLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from outrider_cloud.kernels.attention import AttentionPlan
    from outrider_cloud.kernels.kv import KvPool
    from outrider_cloud.kernels.layers import LayerKernels
    from outrider_cloud.kernels.layout import LayerSpec

FAMILIES = {"llama", "mistral", "qwen2", "qwen3"}
_ACTIVATIONS = {"silu", "swish"}


@dataclass(frozen=True)
class _Fused:
    """Projections of one input as a single matrix product per shard."""

    weights: list[torch.Tensor]
    biases: list[torch.Tensor | None]
    sizes: list[int]  # columns of each projection in a shard

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Shards' outputs, each projection's columns side by side."""
        if len(self.weights) == 1:
            return linear(x, self.weights[0], self.biases[0])
        outs = [linear(x, weight, bias) for weight, bias in zip(self.weights, self.biases, strict=True)]
        split = [torch.split(out, self.sizes, -1) for out in outs]
        return torch.cat([shard[i] for i in range(len(self.sizes)) for shard in split], -1)


def is_known(model: PreTrainedModel) -> bool:
    """Whether `Decoder` computes what the model's own forward does."""
    config: Any = model.config
    if config.model_type not in FAMILIES or getattr(config, "hidden_act", "") not in _ACTIVATIONS:
        return False
    parts: Any = model.model
    # Quantised projections compute by themselves and cannot be fused.
    held = (getattr(part, "weight", None) for layer in parts.layers for part in _shards_of(layer.self_attn.q_proj))
    return all(isinstance(weight, torch.Tensor) and weight.is_floating_point() for weight in held)


class Decoder:
    """The forward of a known model.

    Args:
        model: Loaded, and sharded if it is; its projections become views of fused ones.
        layers: Attention of each layer, as probed.
        kernels: Of the platform.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[LayerSpec], kernels: LayerKernels) -> None:
        assert is_known(model), model.config.model_type
        self._model: Any = model.model
        self._head: Any = model.lm_head
        self._specs, self._kernels = layers, kernels
        self._layers: list[tuple[Any, _Fused, _Fused]] = []
        for layer in self._model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            qkv = _fuse([attention.q_proj, attention.k_proj, attention.v_proj])
            self._layers.append((layer, qkv, _fuse([mlp.gate_proj, mlp.up_proj])))

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        keep: torch.Tensor,
        kv: KvPool,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        """Store the rows' KV and compute logits.

        Args:
            tokens: [rows] integers.
            positions: [rows] integers.
            slots: [rows], -1 for padding.
            keep: [kept] rows whose logits are wanted.
            kv: The KV memory.
            plan: Attention of the step.

        Returns:
            [kept, vocabulary].
        """
        kernels = self._kernels
        hidden = self._model.embed_tokens(tokens)
        # In float32, as the kernels take it; the model would round to its own type.
        cos, sin = (part[0] for part in self._model.rotary_emb(hidden[None].float(), positions[None]))
        residual, x = hidden.clone(), hidden
        for index, (layer, qkv_of, gate_up_of) in enumerate(self._layers):
            spec, attention = self._specs[index], layer.self_attn
            norm = layer.input_layernorm
            x = kernels.rms_norm(x, residual if index else None, norm.weight, norm.variance_epsilon)
            query = kernels.rope_store(qkv_of(x), _rotation(attention, cos, sin), slots, kv, index, spec.q_heads)
            attended = plan.attend(query.transpose(0, 1), kv, index, spec, None)
            x = attention.o_proj(attended.reshape(len(tokens), -1))
            norm = layer.post_attention_layernorm
            x = kernels.rms_norm(x, residual, norm.weight, norm.variance_epsilon)
            x = layer.mlp.down_proj(kernels.silu_mul(gate_up_of(x)))
        norm = self._model.norm
        x = kernels.rms_norm(x, residual, norm.weight, norm.variance_epsilon)
        logits: torch.Tensor = self._head(x.index_select(0, keep))
        return logits


def _rotation(attention: Any, cos: torch.Tensor, sin: torch.Tensor) -> Rotation:
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    if q_norm is None or k_norm is None:
        return Rotation(cos, sin)
    return Rotation(cos, sin, q_norm.weight, k_norm.weight, q_norm.variance_epsilon)


def _shards_of(module: Any) -> Sequence[Any]:
    """The linear layers that a projection is made of: our shards of it, or it alone."""
    return list(module.parts) if isinstance(module, ColumnLinear) else [module]


def _fuse(projections: Sequence[Any]) -> _Fused:
    fused = [_fuse_linears(linears) for linears in zip(*map(_shards_of, projections), strict=True)]
    sizes = [_shards_of(projection)[0].weight.shape[0] for projection in projections]
    return _Fused([weight for weight, _ in fused], [bias for _, bias in fused], sizes)


def _fuse_linears(linears: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One weight for several projections, which become views of it: no memory is held twice."""
    weight = torch.cat([module.weight.data for module in linears])
    biases = [module.bias for module in linears]
    bias = None if biases[0] is None else torch.cat([given.data for given in biases])
    start = 0
    for module in linears:
        end = start + module.weight.shape[0]
        module.weight.data = weight[start:end]
        if bias is not None:
            module.bias.data = bias[start:end]
        start = end
    return weight, bias
