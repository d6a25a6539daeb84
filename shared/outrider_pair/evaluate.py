"""One evaluation: some drafts of one target on the same requests, and what a pack's manifest keeps of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.model.loading import load_model
from outrider_cloud.model.plain import plain_model
from outrider_cloud.model.weights import Weights
from outrider_edge.draft.timing import pass_times
from outrider_pair.calls import call_figures
from outrider_pair.cells import SHAPES, TREE, Cell, Plan, run_cell, summary
from outrider_pair.places import bits_per_byte, place_figures
from outrider_pair.statistics import compare_ratios
from outrider_shared.drafting.runtime import DraftModel
from outrider_shared.errors import ConfigError, MismatchError
from outrider_shared.packs import Pack, Precision, read_pack, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from outrider_cloud.model.loading import LoadedModel

Cells = dict[tuple[int, float, str], Cell]  # by number of the pack, temperature and shape
PAIR = "pair"  # the manifest's `evaluation` key


@dataclass(frozen=True)
class Pair:
    """A loaded target and the packs to judge; made by `load_pair`."""

    folder: str
    weights: Weights
    target: LoadedModel
    packs: tuple[Pack, ...]


def load_pair(target: str, packs: Sequence[Path], weights: Weights = Weights.NATIVE) -> Pair:
    """Load a target, read the packs, and see that they belong together before anything long begins.

    Raises:
        MismatchError: a pack has another tokenizer or vocabulary than the target.
        OutriderError: what is wrong with target or pack.
    """
    loaded, read = load_model(target, weights=weights), tuple(read_pack(path) for path in packs)
    for pack in read:
        manifest = pack.manifest
        if manifest.tokenizer_fingerprint != loaded.tokenizer_sha256:
            raise MismatchError(
                f"{pack.path} has tokenizer {manifest.tokenizer_fingerprint[:12]}, the target {loaded.name} has "
                f"{loaded.tokenizer_sha256[:12]}: it is a draft for another target",
                hint="a draft and its target must have the same tokenizer.json",
            )
        if manifest.architecture.vocab_size != loaded.vocabulary:
            raise MismatchError(
                f"{pack.path} gives {manifest.architecture.vocab_size} logits, the target {loaded.name} "
                f"{loaded.vocabulary}: it is a draft for another target"
            )
    return Pair(target, weights, loaded, read)


def evaluate(pair: Pair, plan: Plan, tick: Callable[[str], None] = lambda _doing: None) -> dict[str, Any]:
    """All figures; `tick` is called with what is being done, `rounds(pair, plan)` times.

    Raises:
        OutriderError: if the target refuses a request or fails.
    """
    engine = build_engine(pair.target, EngineConfig())
    models = [DraftModel.load(pack) for pack in pair.packs]
    cells: Cells = {}
    for number, model in enumerate(models):
        for temperature in plan.temperatures:
            for shape in SHAPES:
                ticking = partial(tick, f"{_title(model.pack)}, {shape}, T = {temperature:g}")
                cells[number, temperature, shape] = run_cell(engine, model, plan, temperature, shape, ticking)
    plain, times = plain_model(pair.folder, pair.weights), pass_times(models)
    packs = []
    for number, model in enumerate(models):
        ticking = partial(tick, f"{_title(model.pack)}, place by place")
        own = {shape: [cells[number, t, shape] for t in plan.temperatures] for shape in SHAPES}
        packs.append(
            {
                "name": model.manifest.name,
                "precision": str(model.manifest.precision),
                "size_bytes": sum(entry.size_bytes for entry in model.manifest.files.values()),
                "pass_us": {str(rows): round(seconds * 1e6, 1) for rows, seconds in times[number].items()},
                "acceptance": [summary(cell, plan.texts) for shape in SHAPES for cell in own[shape]],
                "bits_per_byte": bits_per_byte(model, plain, plan, own[TREE][-1], pair.target.tokenizer),
                **place_figures(model, plain, plan, own[TREE], ticking),
            }
        )
    main = packs[0]["acceptance"][0]
    return {
        "tokens_per_step": main["tokens_per_step"],
        "interval": main["interval"],
        "temperature": plan.temperatures[0],
        "shape": main["shape"],
        "target": {
            "name": pair.target.name,
            "fingerprint": pair.target.fingerprint,
            "weights": str(pair.weights),
            "calls": _calls(cells, plan, pair.target.tokenizer),
        },
        "policy": asdict(plan.policy),
        "requests": len(plan.texts),
        "packs": packs,
        "against": _against(cells, pair.packs, plan),
    }


def rounds(pair: Pair, plan: Plan) -> int:
    """How often `evaluate` ticks."""
    return len(pair.packs) * len(plan.temperatures) * len(plan.texts) * (len(SHAPES) + 1)


def keep(pack: Pack, result: dict[str, Any], *, number: int = 0, force: bool = False) -> None:
    """Write one pack's figures and its prior of survival into its manifest.

    Raises:
        ConfigError: the pack was evaluated for another target before, and `force` is not set.
        PackError: the manifest cannot be written.
    """
    before = pack.manifest.evaluation.get(PAIR, {}).get("target", {})
    if before and before.get("fingerprint") != result["target"]["fingerprint"] and not force:
        raise ConfigError(
            f"{pack.path} holds the evaluation for target {before.get('name')} "
            f"({str(before.get('fingerprint'))[:12]}), this one is {result['target']['name']} "
            f"({result['target']['fingerprint'][:12]})",
            hint="--force replaces it",
        )
    own = dict(result["packs"][number])
    survival = own.pop("survival")
    kept = {name: result[name] for name in ("target", "policy", "requests")} | {
        name: own[name] for name in ("acceptance", "bits_per_byte", "temperatures")
    }
    evaluation = {**pack.manifest.evaluation, PAIR: kept}
    write_manifest(pack.path, replace(pack.manifest, evaluation=evaluation, survival=survival))
    read_pack(pack.path)


def _title(pack: Pack) -> str:
    return f"{pack.manifest.name} {pack.manifest.precision}"


def _calls(cells: Cells, plan: Plan, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Of the target's greedy answers; None where temperature 0 was not asked for, or no text is about a house."""
    cell = cells.get((0, 0.0, TREE))
    if cell is None:
        return None
    return call_figures(plan.texts, [tokenizer.decode(each.tokens, skip_special_tokens=False) for each in cell.answers])


def _against(cells: Cells, packs: Sequence[Pack], plan: Plan) -> dict[str, Any] | None:
    """Tokens per step of each pack as a ratio to the fp32 one's (else the first's), on the same requests and noise."""
    if len(packs) == 1:
        return None
    precisions = [pack.manifest.precision for pack in packs]
    base = precisions.index(Precision.FP32) if Precision.FP32 in precisions else 0
    rows = []
    for number, pack in enumerate(packs):
        for temperature in plan.temperatures:
            for shape in SHAPES:
                mine, other = cells[number, temperature, shape], cells[base, temperature, shape]
                ratio, low, high = compare_ratios((mine.tokens, mine.steps), (other.tokens, other.steps))
                compared = {"pack": _title(pack), "number": number, "temperature": temperature, "shape": shape}
                rows.append({**compared, "ratio": ratio, "interval": (low, high)})
    return {"base": _title(packs[base]), "base_number": base, "ratios": rows}
