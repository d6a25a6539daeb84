"""Command-line flags that both sides have, so that the same words mean the same on either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from outrider_shared.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_OPTIONS = (
    click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Tokens at most."),
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
    click.option("--top-k", type=int, default=0, help="Keep the k likeliest tokens; 0: off."),
    click.option("--top-p", type=float, default=1.0, help="Keep the likeliest tokens up to this mass; 1: off."),
    click.option(
        "--min-p", type=float, default=0.0, help="Keep tokens this fraction as likely as the likeliest; 0: off."
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Key of the noise."),
)


def answer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags of one answer: how many tokens, and how each is chosen."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def sampling_params(flags: Mapping[str, Any]) -> SamplingParams:
    """The parameters that the flags of `answer_options` say.

    Raises:
        ParameterError: if one is out of its range.
    """
    return SamplingParams(*(flags[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed")))
