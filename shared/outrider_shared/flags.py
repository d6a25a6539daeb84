"""Command-line flags that both sides have, so that the same words mean the same on either."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from outrider_shared.chat import render_chat
from outrider_shared.errors import ConfigError, ParameterError
from outrider_shared.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "": 1.0}


class Seconds(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A time as people write it: `2s`, `500ms`, `1m`; a bare number is seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds, not negative."""
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|)", value.strip())
        if found is None:
            self.fail(f"{value!r} is no time; write 2s, 500ms or 1m", param, ctx)
        return float(found[1]) * _UNITS_S[found[2]]


class SystemText(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """What a model is told first: a text, or `bundled` for the house that the bundled pair can be tried in."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's signature
        """The text."""
        if value != "bundled":
            return str(value)
        return (files("outrider_shared") / "bundled" / "house.txt").read_text("utf-8")


def _read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the settings in {path}: {error}", hint="give a TOML file") from error
    known = {option.name for option in ctx.command.params if isinstance(option, click.Option)} - {"config"}
    values = {key.replace("-", "_"): value for key, value in given.items()}
    if unknown := sorted(values.keys() - known):
        raise ConfigError(
            f"{path}: there is no setting {unknown[0]!r}", hint="settings have the names of flags; see --help"
        )
    for key, value in values.items():
        if isinstance(value, dict):
            raise ConfigError(f"{path}: {key} is a table", hint="a setting is a text, a number, true or false")
        if isinstance(value, list):
            values[key] = ",".join(map(str, value))
    ctx.default_map = {**(ctx.default_map or {}), **values}


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="TOML file with values for flags, by their names; flags and environment override it.",
)
system_option = click.option(
    "--system",
    type=SystemText(),
    default="",
    help="What the model is told first, or 'bundled': a house for the bundled pair.",
)
_PROMPT_OPTIONS = (
    click.option("--prompt", required=True, help="Text to continue, or in a chat the user's words."),
    click.option("--chat", is_flag=True, help="Wrap the prompt with the model's chat template; --system does, too."),
    system_option,
    click.option("--ignore-eos", is_flag=True, help="Go on past the model's end tokens."),
)
_OPTIONS = (
    click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Tokens at most."),
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
    click.option("--top-k", type=int, default=0, help="Keep the k likeliest tokens; 0: off."),
    click.option("--top-p", type=float, default=1.0, help="Keep the likeliest tokens up to this mass; 1: off."),
    click.option(
        "--min-p", type=float, default=0.0, help="Keep tokens this fraction as likely as the likeliest; 0: off."
    ),
    click.option("--presence-penalty", type=float, default=0.0, help="Off the logit of what the answer has; 0: off."),
    click.option("--frequency-penalty", type=float, default=0.0, help="The same, as often as it has it; 0: off."),
    click.option("--repetition-penalty", type=float, default=1.0, help="Divides logits of repeated tokens; 1: off."),
    click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help="Added to a token's logit; may be repeated."),
    click.option("--seed", type=int, default=0, show_default=True, help="Key of the noise."),
)


def answer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags of one answer: how many tokens, and how each is chosen."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def prompt_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags of what is asked, beside `answer_options`."""
    for option in reversed(_PROMPT_OPTIONS):
        command = option(command)
    return command


def prompt_text(template: str, prompt: str, system: str, *, chat: bool) -> tuple[str, bool]:
    """The text that the flags of `prompt_options` ask to continue, and whether it is a chat's.

    Args:
        template: The model's chat template.
        prompt: Text to continue, or the user's words.
        system: What the model is told first; with it, it is a chat.
        chat: Whether it is one without.

    Raises:
        ConfigError: if it is to be a chat and the model has no template.
        InputError: if the template refuses the messages.
    """
    if not (chat or system):
        return prompt, False
    first = [{"role": "system", "content": system}] if system else []
    return render_chat(template, [*first, {"role": "user", "content": prompt}]), True


def sampling_params(flags: Mapping[str, Any]) -> SamplingParams:
    """The parameters that the flags of `answer_options` say.

    Raises:
        ParameterError: if one is out of its range.
    """
    return SamplingParams(
        temperature=flags["temperature"],
        top_k=flags["top_k"],
        top_p=flags["top_p"],
        min_p=flags["min_p"],
        seed=flags["seed"],
        presence_penalty=flags["presence_penalty"],
        frequency_penalty=flags["frequency_penalty"],
        repetition_penalty=flags["repetition_penalty"],
        logit_bias=tuple(_bias(text) for text in flags["logit_bias"]),
    )


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise ParameterError(f"logit bias {text!r}", hint="write ID=BIAS, for example 42=-100") from None
