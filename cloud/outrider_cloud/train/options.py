"""Flags that commands of `outrider train` have in common, and what becomes of them."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from outrider_shared.errors import ConfigError
from outrider_shared.files import storage_errors
from outrider_shared.packs import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from outrider_cloud.train.loop.world import World

_PATH = click.Path(path_type=Path)
DATA = click.option("--data", type=click.Path(path_type=Path, exists=True), multiple=True, help="Text file or folder; may come more than once.")  # fmt: skip
SET = click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override any key of the recipe, such as fit.steps=200.")  # fmt: skip
SKIP = click.option("--skip-broken", is_flag=True, help="Go on without broken lines of data, and tell how many.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
FORCE = click.option("--force", is_flag=True, help="Start anew instead of going on, and replace what is at --out.")
TARGET = click.option("--target", "target_folder", type=_PATH, required=True, help="Hugging Face folder, or 'bundled'.")
HOME = click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True, help="Folder of the smart-home data.")  # fmt: skip
MODEL_OUT = click.option("--out", type=_PATH, required=True, help="Model folder to write.")
WORK = click.option("--work", type=_PATH, help="Texts and checkpoints; by default OUT.work.")
STEPS = click.option("--steps", "fit__steps", type=click.IntRange(1), help="Updates.")
COMPILE = click.option("--compile/--no-compile", "fit__compile", default=None, help="Compile the model; pays from some 300 steps on.")  # fmt: skip

# What runs leave in their work folder: texts, tokenizer, state, and what was made.
_OF_A_RUN = (
    *("samples*", "text", "texts", "text-alone", "held-out", "round-*", "reported*"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    *("checkpoint.p*t", "best.p*t", "log.jsonl", "figures.json", "draft", ".draft.part"),
)

_DISTILLING = (
    TARGET,
    DATA,
    click.option("--out", type=_PATH, required=True, help="Pack to write; the draft as a model folder is WORK/draft."),
    WORK,
    click.option("--loss", "distil__loss", help="forward-kl, reverse-kl, tv, mix, coupling, coupled-kl or text."),
    STEPS,
    COMPILE,
    click.option("--prompts", "distil__prompts", type=click.IntRange(1), help="Texts that the target writes."),
    click.option("--precision", type=click.Choice([str(each) for each in Precision]), help="Of the pack."),
    SET,
    SKIP,
    FORCE,
    JSON,
)


def distilling(command: Callable[..., Any]) -> Callable[..., Any]:
    """All flags of a command that distils a draft and makes its pack."""
    for option in reversed(_DISTILLING):
        command = option(command)
    return command


def recipe_option(names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--config`, with the recipes that ship for this command."""
    return click.option("--config", default="", metavar="RECIPE", help=f"TOML file, or the name of a recipe that ships: {names}.")  # fmt: skip


def overrides(sets: tuple[str, ...], **flags: Any) -> dict[str, Any]:
    """What --set and a command's own flags lay over the recipe, by dotted key. Raises ConfigError."""
    from outrider_cloud.train.settings import parse_set  # noqa: PLC0415 - keeps `--help` quick

    return parse_set(sets) | {key.replace("__", "."): value for key, value in flags.items() if value is not None}


def model_folder(target: Path) -> Path:
    """The folder of --target."""
    from outrider_cloud.model.loading import BUNDLED, bundled_model  # noqa: PLC0415 - likewise

    return bundled_model() if str(target) == BUNDLED else target


def check_out(out: Path, *, force: bool, holds: str) -> None:
    """Something can be written at --out, and what it replaces is of the same kind.

    Args:
        out: Where.
        force: Whether what is there may be replaced.
        holds: File by which a pack or a model folder is known.

    Raises:
        ConfigError: something is in the way.
        StorageError: nothing can be written there.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", hint="--out takes a folder")
    if out.exists() and any(out.iterdir()):
        if not force:
            raise ConfigError(f"{out} exists", hint="--force replaces it and starts anew")
        if not (out / holds).is_file():
            raise ConfigError(f"{out} holds no {holds}: --force does not replace it", hint="choose another --out")
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()


def work_folder(out: Path, folder: Path | None) -> Path:
    """The folder of texts and checkpoints. Raises ConfigError."""
    place = folder or out.with_name(f"{out.name}.work")
    if place.exists() and not place.is_dir():
        raise ConfigError(f"{place} is a file", hint="--work takes a folder")
    return place


def start_anew(place: Path, world: World) -> None:
    """Remove what an earlier run left in a work folder, and nothing else that may lie there."""
    if world.leads and place.is_dir():
        for path in (path for name in _OF_A_RUN for path in place.glob(name)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    world.wait()


class _StopError(BaseException):
    """Ctrl-C or SIGTERM; no `except Exception` on the way takes it for its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def going_on(place: Path) -> Iterator[None]:
    """A run that is stopped says how it goes on, and ends with the status of the signal."""

    def stop(number: int, _: object) -> None:
        raise _StopError(number)

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, stop)
    try:
        yield
    except _StopError as stopped:
        click.echo(f"outrider: stopped; the same command goes on with what is in {place}", err=True)
        raise SystemExit(128 + stopped.number) from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def teller(world: World, *, as_json: bool) -> Callable[[str], None]:
    """Prints sentences, from the leading process alone; beside a JSON object on stderr."""
    console = Console(stderr=as_json)
    return lambda text: console.print(text, highlight=False, soft_wrap=True) if world.leads else None


def tell(figures: dict[str, Any], world: World, *, as_json: bool) -> None:
    """Print the JSON object, where one is asked for."""
    if world.leads and as_json:
        click.echo(json.dumps(figures))
