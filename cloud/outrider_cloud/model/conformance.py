"""The conformance check at load: a small random clone of the configuration, our packed tree batch against eager.

It is the net under the gate: what differs from eager is refused, whatever the reason.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from outrider_cloud.kernels.layout import Segment
from outrider_cloud.kernels.platform import Platform, cpu_platform
from outrider_cloud.model import gate
from outrider_cloud.model.attention import ATTENTION, StepContext
from outrider_cloud.model.probe import probe_layers
from outrider_shared.errors import ModelError, OutriderError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TOLERANCE = 2e-4
_VOCABULARY = 384
_WINDOW = 7
_SOFTCAP = 0.5
_CONTEXTS = (37, 9)
_TREE = [-1, 0, 0, 1, 2]


def small_clone(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with a layer of each kind, few tokens, and a window and a cap that the check exceeds."""
    clone = copy.deepcopy(config)
    text = clone.get_text_config()
    kinds = list(getattr(text, "layer_types", None) or ())
    chosen = [kinds.index(kind) for kind in dict.fromkeys(kinds)] if kinds else []
    chosen = sorted(chosen + [i for i in range(len(kinds)) if i not in chosen][: max(0, 2 - len(chosen))])
    text.num_hidden_layers = len(chosen) if kinds else min(2, text.num_hidden_layers)
    if kinds:
        text.layer_types = [kinds[i] for i in chosen]
    if getattr(text, "sliding_window", None):
        text.sliding_window = _WINDOW
    if getattr(text, "attn_logit_softcapping", None):
        text.attn_logit_softcapping = _SOFTCAP
    text.vocab_size = min(text.vocab_size, _VOCABULARY)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(text, name, None)
        if isinstance(value, list) or (isinstance(value, int) and value >= text.vocab_size):
            setattr(text, name, 0)
    return clone


def check(config: PretrainedConfig, platform: Platform | None = None) -> float:
    """Largest difference of a logit between our packed tree batch and eager, on a small random clone.

    Raises:
        ModelError: if the gate refuses the model, it fails to run, or differs by more than `TOLERANCE`.
    """
    gate.check(config)
    try:
        worst = _difference(small_clone(config), platform or cpu_platform(exact=False))
    except OutriderError:
        raise
    except Exception as error:
        raise ModelError(f"{config.model_type} cannot be served: its clone failed: {error}") from error
    if not worst <= TOLERANCE:
        raise ModelError(
            f"{config.model_type} cannot be served: logits differ from eager by {worst:.2g} (allowed {TOLERANCE:g})",
            hint="its attention does something that reaches us neither by keyword nor by configuration",
        )
    return worst


def _pair(config: PretrainedConfig) -> tuple[PreTrainedModel, PreTrainedModel]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval().float()
        for parameter in reference.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.05)
    ours = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=ATTENTION).eval().float()
    ours.load_state_dict(reference.state_dict())
    return reference, ours


@torch.inference_mode()
def _difference(config: PretrainedConfig, platform: Platform) -> float:
    reference, ours = _pair(config)
    layers = probe_layers(ours)
    kv = platform.kv_pool(layers, 128, torch.float32)
    generator = np.random.default_rng(5)
    vocabulary = config.get_text_config().vocab_size
    # Scattered slots, so that an attention that ignores the slot list cannot pass.
    slots = generator.permutation(128)
    contexts = [generator.integers(1, vocabulary, n).tolist() for n in _CONTEXTS]
    held = [slots[:37], slots[37:46]]
    empty = np.zeros(0, np.int64)
    chains = [Segment(empty, held[i], list(range(-1, len(c) - 1))) for i, c in enumerate(contexts)]

    def run(segments: list[Segment], tokens: list[int]) -> torch.Tensor:
        positions = [len(s.context) + d for s in segments for d in s.depths()]
        context = StepContext(
            kv, torch.from_numpy(np.concatenate([s.slots for s in segments])),
            platform.attention.plan(segments, len(tokens)), layers,
        )  # fmt: skip
        out: Any = ours(
            input_ids=torch.tensor([tokens]), position_ids=torch.tensor([positions]), use_cache=False,
            logits_to_keep=torch.arange(len(tokens)), outrider=context,
        )  # fmt: skip
        logits: torch.Tensor = out.logits[0]
        return logits

    def plain(tokens: list[int]) -> torch.Tensor:
        logits: torch.Tensor = reference(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        return logits

    run(chains, contexts[0] + contexts[1])
    drafts = [generator.integers(1, vocabulary, n).tolist() for n in (5, 3)]
    steps = [Segment(held[0], slots[46:51], _TREE), Segment(held[1], slots[51:54], [-1, 0, 1])]
    logits = run(steps, drafts[0] + drafts[1])
    worst, row = 0.0, 0
    for context, draft, segment in zip(contexts, drafts, steps, strict=True):
        for i in range(len(draft)):
            path, walk = [], i
            while walk >= 0:
                path.append(draft[walk])
                walk = segment.parents[walk]
            gap = (logits[row] - plain(context + path[::-1])).abs().max().item()
            worst = max(worst, gap if np.isfinite(gap) else float("inf"))
            row += 1
    return worst
