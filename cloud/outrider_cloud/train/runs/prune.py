"""`outrider train prune`: a folder in, a smaller folder out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider_cloud.train import preflight
from outrider_cloud.train.distil.distillation import DistilConfig, Distillation
from outrider_cloud.train.loop.config import FitConfig
from outrider_cloud.train.loop.folders import read_model, write_model
from outrider_cloud.train.prune.cutting import prune
from outrider_cloud.train.runs.inputs import ids_of, source_of, starts_of
from outrider_cloud.train.settings import DataConfig
from outrider_cloud.train.texts.course import ShardCourse
from outrider_shared.chat import read_chat_template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.train.prune.keep import Keep
    from outrider_cloud.train.texts.documents import Reading

_TOKENS = 8192
_BATCHES = 4


def prune_folder(
    folder: Path, keep: Keep, data: Sequence[Path], out: Path, prompts: int, reading: Reading
) -> dict[str, Any]:
    """Prune a model folder on texts (its own samples where there is no data). Raises OutriderError."""
    whole = preflight.check_target(folder)
    preflight.check_pruning(whole, keep)
    text = whole.get_text_config()
    model = read_model(folder).eval().requires_grad_(requires_grad=False)
    preflight.check_disk(out, 0, sum(p.numel() for p in model.parameters()))
    tokenizer = preflight.read_tokenizer(folder)
    longest = min(448, text.max_position_embeddings)
    source = source_of(
        DataConfig(longest=longest), data, tokenizer, read_chat_template(folder), reading, starts_of(text)
    )
    ends = frozenset(ids_of(model.generation_config.eos_token_id) or ids_of(text.eos_token_id))
    with tempfile.TemporaryDirectory() as scratch:
        config = DistilConfig(data="text" if data else "samples", loss="text", prompts=prompts)
        shard = Distillation(model, model, source, ends, config, FitConfig(1), Path(scratch)).base_shard()
        course = ShardCourse(shard, _TOKENS, seed=1)
        small, report = prune(model, [course.batch(step) for step in range(_BATCHES)], keep)
    write_model(small, out, folder, told={"pruning.json": report})
    return report
