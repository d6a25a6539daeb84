"""The recipe of the bundled pair: `python -m outrider_cloud.train.bundled --data DIR --out DIR [--stage STAGE]`.

Stages: tokenizer, requests, target, draft, figures; each leaves its result in the work folder, and training goes on
where it was cut off.
"""

import json
from functools import partial
from pathlib import Path

import click
import torch
from rich.console import Console
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaForCausalLM

from outrider_cloud.train.batches import Batch
from outrider_cloud.train.chat import render
from outrider_cloud.train.compiling import compiled
from outrider_cloud.train.distil import agreement, distil_loss
from outrider_cloud.train.evaluate import answer_figures, pair_figures, prompts_of
from outrider_cloud.train.fit import Fit, FitConfig
from outrider_cloud.train.folder import save_folder
from outrider_cloud.train.losses import text_loss
from outrider_cloud.train.recipe import (
    CONTEXT,
    DRAFT,
    TARGET,
    VOCABULARY,
    Texts,
    make_course,
    make_model,
    read_texts,
    validation_batches,
)
from outrider_cloud.train.requests import choose_requests, write_requests
from outrider_cloud.train.vocabulary import train_vocabulary

STAGES = ("tokenizer", "requests", "target", "draft", "figures")
console = Console()


@torch.no_grad()
def validation_loss(model: nn.Module, batches: list[Batch]) -> dict[str, float]:
    """Cross-entropy of the assistant's tokens, in nats."""
    losses = torch.stack([text_loss(model, batch) for batch in batches])
    weights = torch.tensor([float(batch.weight.sum()) for batch in batches])
    return {"valid": float((losses * weights).sum() / weights.sum())}


def tokenizer_stage(texts: Texts, out: Path) -> Tokenizer:
    """Train the tokenizer, or read it where it was trained before."""
    path = out / "tokenizer.json"
    if not path.exists():
        train_vocabulary((render(chat) for chat in texts.chats(0)), VOCABULARY).save(str(path))
    return Tokenizer.from_file(str(path))


def target_stage(texts: Texts, tokenizer: Tokenizer, out: Path, config: FitConfig, context_share: float) -> None:
    """Train the target on the chats; `target-early` always holds the last checkpoint."""
    validate = partial(validation_loss, batches=validation_batches(texts, tokenizer))

    def export(model: nn.Module, _step: int) -> None:
        save_folder(model, tokenizer, out / "target-early", CONTEXT)

    course = make_course(texts, tokenizer, 8192, context_share)
    model = compiled(make_model(TARGET, tokenizer, seed=1))
    Fit(model, course, text_loss, config, out / "target-run", validate, export).run()
    save_folder(model, tokenizer, out / "target", CONTEXT)


def draft_stage(texts: Texts, tokenizer: Tokenizer, out: Path, config: FitConfig, context_share: float) -> None:
    """Distil the draft from the target on the same chats."""
    target = compiled(LlamaForCausalLM.from_pretrained(out / "target", dtype=torch.float32)).eval()
    batches = validation_batches(texts, tokenizer)

    def validate(draft: nn.Module) -> dict[str, float]:
        return agreement(target, draft, batches)

    course = make_course(texts, tokenizer, 4096, context_share)
    model = compiled(make_model(DRAFT, tokenizer, seed=2))
    Fit(model, course, distil_loss(target), config, out / "draft-run", validate).run()
    save_folder(model, tokenizer, out / "draft", CONTEXT)


def figures_stage(texts: Texts, tokenizer: Tokenizer, out: Path, chats: int = 100) -> dict[str, dict[str, float]]:
    """What the model cards report, also written to `figures.json`."""
    models = {
        side: LlamaForCausalLM.from_pretrained(out / side, dtype=torch.float32).eval() for side in ("target", "draft")
    }
    target, draft = models["target"], models["draft"]
    batches = validation_batches(texts, tokenizer)
    prompts = prompts_of(tokenizer, texts.validation()[:chats])
    figures = {
        "target": validation_loss(target, batches) | answer_figures(target, tokenizer, prompts),
        "draft": validation_loss(draft, batches) | answer_figures(draft, tokenizer, prompts),
        "pair": agreement(target, draft, batches),
    }
    for temperature in (0.0, 0.8, 1.0):
        figures[f"pair at T={temperature}"] = pair_figures(target, draft, tokenizer, prompts, temperature)
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Work folder.")
@click.option("--stage", type=click.Choice([*STAGES, "all"]), default="all", show_default=True)
@click.option("--target-steps", default=2000, show_default=True)
@click.option("--draft-steps", default=3600, show_default=True)
@click.option("--muon-lr", default=0.02, show_default=True)
@click.option("--adam-lr", default=3e-3, show_default=True)
@click.option(
    "--context-share",
    default=0.1,
    show_default=True,
    help="Share of the other tokens to learn besides the assistant's.",
)
def main(
    data: Path,
    out: Path,
    stage: str,
    target_steps: int,
    draft_steps: int,
    muon_lr: float,
    adam_lr: float,
    context_share: float,
) -> None:
    """Train the bundled pair."""
    out.mkdir(parents=True, exist_ok=True)
    stages = STAGES if stage == "all" else (stage,)
    texts = read_texts(data)
    console.print(f"{len(texts.home)} chats, {len(texts.held_out)} held out, dropped {dict(texts.dropped)}")
    tokenizer = tokenizer_stage(texts, out)
    if "requests" in stages:
        write_requests(out / "requests.jsonl", choose_requests(texts.held_out, 60))
    if "target" in stages:
        target_stage(texts, tokenizer, out, FitConfig(target_steps, muon_lr, adam_lr), context_share)
    if "draft" in stages:
        draft_stage(texts, tokenizer, out, FitConfig(draft_steps, muon_lr, adam_lr, validate_every=400), context_share)
    if "figures" in stages:
        console.print_json(data=figures_stage(texts, tokenizer, out))


if __name__ == "__main__":
    main()
