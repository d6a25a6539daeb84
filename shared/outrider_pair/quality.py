"""`outrider train quality`: what quantising or pruning a target does to its texts, beside the target as it was."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import track

from outrider_shared.cli import TypedErrors
from outrider_shared.errors import MismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

BUNDLED = "bundled"


@click.command()
@click.option("--model", default=BUNDLED, show_default=True, help="Hugging Face folder to judge, or 'bundled'.")
@click.option(
    "--weights",
    type=click.Choice(["native", "int8", "fp8"]),
    default="int8",
    show_default=True,
    help="How its matrices are held.",
)
@click.option("--against", default="", help="Hugging Face folder of the target as it was; by default the same, native.")
@click.option("--data", multiple=True, default=[BUNDLED], show_default=True, help="As of `outrider train eval`.")
@click.option("--limit", type=click.IntRange(1), help="Texts of each file at most.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=48, show_default=True, help="Tokens of a text beyond its prompt."
)
@click.option("--skip-broken", is_flag=True, help="Leave out lines that cannot be read.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def quality(*, model: str, weights: str, against: str, as_json: bool, **flags: Any) -> None:
    """What quantising or pruning did to a target: total variation, perplexity, greedy agreement."""
    from outrider_cloud.model.loading import load_model  # noqa: PLC0415 - keeps `--help` quick
    from outrider_cloud.model.plain import plain_model  # noqa: PLC0415
    from outrider_cloud.model.weights import Weights  # noqa: PLC0415
    from outrider_pair.texts import read_texts  # noqa: PLC0415

    base = load_model(against or model)
    judged = load_model(model, weights=Weights(weights))
    if judged.tokenizer_sha256 != base.tokenizer_sha256:
        raise MismatchError(f"{judged.name} and {base.name} have different tokenizers: there is nothing to compare")
    longest = min(base.context_length, judged.context_length) - flags["max_tokens"]
    template, broken = base.chat_template, flags["skip_broken"]
    texts = read_texts(
        list(flags["data"]), base.tokenizer, template, longest=longest, limit=flags["limit"], skip_broken=broken
    )
    sides = (plain_model(against or model), plain_model(model, Weights(weights)))
    prompts = [text.prompt for text in texts.rows]
    figures = compare(*sides, prompts, flags["max_tokens"], base.eos)
    told = {"model": model, "weights": weights, "against": against or model, "fingerprint": judged.fingerprint}
    if as_json:
        click.echo(json.dumps({**told, **figures}))
    else:
        lines = (f"{name}: {_told(value)}" for name, value in figures.items())
        Console(highlight=False).print(f"{model}, {weights}, against {against or model}", *lines, sep="\n")


def _told(value: float | tuple[float, float]) -> str:
    return " to ".join(f"{each:.4g}" for each in value) if isinstance(value, tuple) else f"{value:.4g}"


def compare(
    base: torch.nn.Module, judged: torch.nn.Module, prompts: Sequence[Sequence[int]], count: int, eos: frozenset[int]
) -> dict[str, Any]:
    """Mean figures over all places of the greedy continuations of `prompts` by `base`, up to `count` tokens each.

    Perplexities are those of the continuations' tokens; `greedy_agreement` is the share of places with the same
    likeliest token, `tv` the total variation distance between the two distributions; both with 95 % bootstrap intervals
    over the prompts.
    """
    import numpy as np  # noqa: PLC0415 - keeps `--help` quick

    from outrider_pair.scores import bits, softmax, target_logits  # noqa: PLC0415
    from outrider_pair.statistics import ratio_interval  # noqa: PLC0415

    apart, same, spent = [], [], [0.0, 0.0]
    for prompt in track(prompts, "texts", console=Console(stderr=True), transient=True):
        tokens = [*prompt, *continued(base, prompt, count, eos)]
        first, chosen = len(prompt), tokens[len(prompt) :]
        one, other = (target_logits(side, tokens, first) for side in (base, judged))
        apart.append(np.abs(softmax(one) - softmax(other)).sum(-1) / 2)
        same.append(one.argmax(-1) == other.argmax(-1))
        for side, logits in enumerate((one, other)):
            spent[side] += bits(logits, chosen)
    lengths = [len(each) for each in same]
    places = sum(lengths)
    return {
        "places": places,
        "tv": float(np.concatenate(apart).mean()),
        "tv_interval": ratio_interval([float(each.sum()) for each in apart], lengths),
        "greedy_agreement": float(np.concatenate(same).mean()),
        "greedy_agreement_interval": ratio_interval([float(each.sum()) for each in same], lengths),
        "perplexity": 2 ** (spent[1] / places),
        "perplexity_against": 2 ** (spent[0] / places),
    }


def continued(model: torch.nn.Module, prompt: Sequence[int], count: int, eos: frozenset[int]) -> list[int]:
    """The greedy continuation of a prompt, up to `count` tokens or an end token."""
    import torch  # noqa: PLC0415 - keeps `--help` quick

    ids, cache = torch.tensor([list(prompt)]), None
    made: list[int] = []
    with torch.inference_mode():
        while len(made) < count and not eos.intersection(made[-1:]):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            made.append(int(out.logits[0, -1].argmax()))
            ids = torch.tensor([made[-1:]])
    return made


if __name__ == "__main__":
    sys.exit(TypedErrors(commands={"quality": quality}).main(sys.argv[1:]))
