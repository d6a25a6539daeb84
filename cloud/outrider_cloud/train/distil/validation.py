"""How good a draft is on the way: on texts that the target wrote after held-out prompts, scored once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from outrider_cloud.train.distil.divergences import buckets, coupling, forward_kl
from outrider_cloud.train.distil.samples import sampled_shard
from outrider_cloud.train.loop.losses import chosen_logits, positions
from outrider_cloud.train.texts.course import ShardCourse
from outrider_cloud.train.texts.shards import Shard
from outrider_cloud.train.texts.sources import NoSource, take
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from outrider_cloud.train.distil.distillation import Distillation
    from outrider_cloud.train.loop.fit import Validate
    from outrider_cloud.train.texts.sources import Source

_HELD_OUT = 96


def held_out_shard(folder: Path, target: nn.Module, source: Source, ends: frozenset[int], run: Distillation) -> Path:
    """Texts that the target writes after held-out prompts, made once by the leading process. Raises ConfigError."""
    if run.world.leads:
        prompts = take(source.held_out_prompts(), _HELD_OUT)
        prompts = (prompts * _HELD_OUT)[:_HELD_OUT] if isinstance(source, NoSource) else prompts
        if not prompts:
            raise ConfigError("no text is held out", hint="give more texts: one in 48 is kept for validation")
        config = run.config
        sampled_shard(
            folder, [(target, prompts)], target, ends, config.writing, k=config.top_k, seed=config.seed + 1,
            source="held out",
        )  # fmt: skip
    run.world.wait()
    return folder


def validation_of(folder: Path, tokens_per_batch: int, device: torch.device) -> Validate:
    """Mean chance of a refused token under shared noise (`valid`), and divergence, on stored held-out texts."""
    shard = Shard(folder)
    stride = max(1, tokens_per_batch * len(shard) // max(1, shard.meta.tokens))

    @torch.no_grad()
    def validate(draft: nn.Module) -> dict[str, float]:
        course, lost, apart, count = ShardCourse(shard, tokens_per_batch, 0), 0.0, 0.0, 0
        for start in range(0, len(shard), stride):
            batch = course.collate(list(range(start, min(len(shard), start + stride)))).to(device)
            rows, columns, _ = positions(batch)
            p, q = buckets(batch, chosen_logits(draft, batch, rows, columns))
            lost, apart = lost + float(coupling(p, q).sum()), apart + float(forward_kl(p, q).sum())
            count += len(rows)
        return {"valid": lost / max(1, count), "kl": apart / max(1, count)}

    return validate
