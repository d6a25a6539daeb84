"""The command `outrider`: finds each side's commands through entry points, and turns errors into sentences."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import re
import signal
import sys
from typing import Any, NoReturn

import click

from outrider_shared.errors import ConfigError, InputError, OutriderError, StorageError
from outrider_shared.files import HINT
from outrider_shared.logs import configure_logs

GROUP = "outrider.commands"
BENCHES = "outrider.bench"
TRAINING = "outrider.train"
# What the file system says of places that the caller named, or of a full disk; anything else is a defect of ours.
_PLACES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EISDIR})


class TypedErrors(click.Group):
    """A group whose commands end with a sentence and an exit status instead of a traceback.

    Status 2 is the caller's fault (flags, files, bad input), 130 is Ctrl-C, 1 everything else. With --json among the
    arguments, the error goes to standard output as {"error": {"code", "message", "hint"}}, too.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C ends it with the status of that signal."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\noutrider: stopped", err=True)
            ctx.exit(128 + signal.SIGINT)

    def main(self, args: Any = None, *rest: Any, **extra: Any) -> Any:
        """Run, and end the process."""
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            return super().main(arguments, *rest, **extra)
        except OutriderError as error:
            _end(error, as_json="--json" in arguments)
        except OSError as error:
            if error.errno not in _PLACES:
                raise
            _end(
                StorageError(f"{error.filename or 'a file'}: {error.strerror}", hint=HINT),
                as_json="--json" in arguments,
            )
        except ModuleNotFoundError as error:
            if str(error.name).startswith("outrider_"):
                raise
            name = str(error.name)
            _end(
                ConfigError(f"this command needs the module {name}", hint=_install(name)), as_json="--json" in arguments
            )


def _install(module: str) -> str:
    """Which extras bring a module, as this distribution's own metadata tell."""
    try:
        wanted = importlib.metadata.requires("outrider") or []
    except importlib.metadata.PackageNotFoundError:
        wanted = []
    top = module.partition(".")[0].lower()
    found = (re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", line) for line in wanted)
    extras = {match[2] for match in found if match and re.sub(r"[-.]", "_", match[1]).lower() == top} - {"dev", "bench"}
    names = " or ".join(f"'.[{extra}]'" for extra in sorted(extras)) or "'.[cloud]', '.[edge]' or '.[fleet]'"
    return f"in the repository: pip install {names}"


def _end(error: OutriderError, *, as_json: bool) -> NoReturn:
    if as_json:
        click.echo(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}))
    click.echo(f"outrider: {error}", err=True)
    sys.exit(2 if isinstance(error, InputError) else 1)


class InstalledCommands(TypedErrors):
    """Commands that the installed packages registered; loaded when they are asked for, so `--help` stays quick.

    Attributes:
        registry: Group of entry points that holds them.
    """

    registry = GROUP

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names of the registered commands."""
        return sorted(entry.name for entry in importlib.metadata.entry_points(group=self.registry))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import one command; what its extra lacks is told instead of raised."""
        for entry in importlib.metadata.entry_points(group=self.registry, name=cmd_name):
            try:
                command: click.Command = entry.load()
            except ModuleNotFoundError as error:
                return _missing(cmd_name, str(error.name))
            return command
        return None


class InstalledBenches(InstalledCommands):
    """Measurements, each from the side that can make it."""

    registry = BENCHES


class TrainingCommands(InstalledCommands):
    """The training room's own commands, and those that need both sides and therefore live elsewhere."""

    registry = TRAINING

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of both."""
        return sorted({*self.commands, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One's own first."""
        return self.commands.get(cmd_name) or super().get_command(ctx, cmd_name)


def _missing(name: str, module: str) -> click.Command:
    def tell(**_: Any) -> None:
        raise ConfigError(f"`outrider {name}` needs the module {module}", hint=_install(module))

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, callback=tell, help=f"Needs {module}.", context_settings=settings)


@click.group(cls=InstalledCommands)
@click.version_option(package_name="outrider")
def main() -> None:
    """Outrider: the edge drafts, the cloud commits."""
    configure_logs()


@click.group(cls=InstalledBenches)
def bench() -> None:
    """Measurements, ours beside a baseline of the same run."""
    configure_logs()
