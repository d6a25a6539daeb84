"""`outrider cloud`: serve the verifier, or generate without a network."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import structlog

from outrider_shared.cli import TypedErrors
from outrider_shared.errors import ConfigError, UnavailableError
from outrider_shared.flags import answer_options, config_option, prompt_options, prompt_text, sampling_params
from outrider_shared.logs import configure_logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_cloud.build import Placement
    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.replay.store import ReplayConfig

_log = structlog.get_logger(__name__)


@click.group(cls=TypedErrors)
def cloud() -> None:
    """The cloud side: the full model and its service."""
    configure_logs()


def _numbers(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers such as 4,8,16") from None


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags of the engine, shared by the commands that run one."""
    from outrider_cloud.engine.config import EngineConfig  # noqa: PLC0415 - keeps `--help` quick

    defaults = EngineConfig()
    for option in (
        click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads of a step; 0: torch's choice."),
        click.option("--row-budget", type=click.IntRange(1), default=defaults.row_budget, show_default=True, help="Most rows of a step."),
        click.option("--buckets", default=",".join(map(str, defaults.buckets)), show_default=True, callback=_numbers, help="Row counts that steps are padded to with --exact."),
        click.option("--kv-tokens", type=click.IntRange(1), default=defaults.kv_tokens, show_default=True, help="Tokens whose KV is held."),
        click.option("--exact/--no-exact", default=defaults.exact, show_default=True, help="Rows bit for bit the same whatever surrounds them; costs compute on a CPU."),
        click.option("--weights", type=click.Choice(["native", "int8", "fp8"]), default="native", show_default=True, help="How the matrices are held: int8 and fp8 take a byte for each weight; `outrider train quality` tells their price."),
        click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), help="Of the weights.  [default: bfloat16 on a GPU, float32 on a CPU]"),
        click.option("--shards", type=click.IntRange(0), default=0, help="Parts that the model is computed in; with --exact, services with as many give the same text on any number of GPUs.  [default: one per rank]"),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
        click.option("--model", default="bundled", show_default=True, help="Hugging Face folder, or 'bundled'."),
    ):  # fmt: skip
        command = option(command)
    return command


@cloud.command(context_settings={"auto_envvar_prefix": "OUTRIDER_CLOUD"})
@config_option
@engine_options
@click.option(
    "--tensor-parallel",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that hold the model together, each on a GPU of its own; under torchrun as many as it started.",
)
@click.option("--listen", default="127.0.0.1:50061", show_default=True, help="HOST:PORT; port 0 takes a free one.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="PEM chain of this server.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="PEM key of this server.")
@click.option("--tls-client-ca", type=click.Path(path_type=Path), help="Ask every device for a certificate of this CA.")
@click.option("--insecure", is_flag=True, help="Allow plaintext beyond loopback.")
@click.option(
    "--max-sessions", type=click.IntRange(1), default=256, show_default=True, help="Sessions at once; more are refused."
)
@click.option(
    "--max-sessions-per-device",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Streams of one device at once: of a certificate's CN, or without client certificates of an address.",
)
@click.option("--hold-ms", type=click.FloatRange(0), default=250.0, show_default=True, help="Longest wait for drafts.")
@click.option("--lease-s", type=click.FloatRange(0), default=30.0, show_default=True, help="KV of a broken stream.")
@click.option(
    "--share-prefixes",
    is_flag=True,
    help="Devices share the KV of equal prompts: for devices of one owner, since who guesses a prompt sees that another used it.",
)
@click.option("--drain-s", type=click.FloatRange(0), default=20.0, show_default=True, help="Time to finish on SIGTERM.")
@click.option(
    "--draft",
    default="none",
    show_default=True,
    help="A draft model beside the target, for sessions whose edge is late: pack, Hugging Face folder, 'bundled', or 'none'.",
)
@click.option(
    "--replay-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep refused drafts of devices that agreed to it here, for `outrider train replay`; by default nothing is kept.",
)
@click.option(
    "--replay-cap-mb",
    type=click.FloatRange(0.0625),
    default=256.0,
    show_default=True,
    help="Size of that folder at most; the oldest go first.",
)
@click.option(
    "--replay-keep-days",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="How long a record is kept at most.",
)
@click.option(
    "--metrics",
    default="",
    metavar="HOST:PORT",
    help="Serve metrics for Prometheus at http://HOST:PORT/metrics; no names and no texts are in them. Off by default.",
)
@click.option("--ready-file", type=click.Path(path_type=Path), help="Write the address here once serving.")
@click.option(
    "--pace-step-ms", type=click.FloatRange(0), default=0.0, hidden=True, help="Benchmarks: least time of a step."
)
def serve(ready_file: Path | None, **flags: Any) -> None:
    """Serve the verifier until SIGTERM; a second one ends it without waiting for answers.

    Each flag may also stand in the environment (--kv-tokens as OUTRIDER_CLOUD_KV_TOKENS) or in the file of --config
    (kv-tokens = 65536); a flag overrides the environment, and that the file.
    """
    from outrider_cloud.build import build_engine, build_runner, check_device  # noqa: PLC0415 - torch is slow to import
    from outrider_cloud.parallel.team import assemble, backend_of, local_device  # noqa: PLC0415
    from outrider_cloud.service.config import ServiceConfig  # noqa: PLC0415
    from outrider_cloud.service.server import Server  # noqa: PLC0415

    engine_config = _engine_config(flags)
    check_device(flags["device"], 1 if "RANK" in os.environ else flags["tensor_parallel"])
    team = assemble(
        flags["tensor_parallel"], flags["shards"], ordered=engine_config.exact, command=_another_rank(flags)
    )
    device = local_device(flags["device"])
    team.join(backend_of(device))
    placement = _placement({**flags, "device": device})
    if not team.leads:
        team.follow(build_runner(flags["model"], engine_config, team.world, **placement))
        return
    config = ServiceConfig(
        listen=flags["listen"],
        tls=_tls(flags["tls_cert"], flags["tls_key"], flags["tls_client_ca"]),
        insecure=flags["insecure"],
        max_sessions_per_device=flags["max_sessions_per_device"],
        share_prefixes=flags["share_prefixes"],
        drain_s=flags["drain_s"],
        replay=_replay(flags),
        metrics=flags["metrics"],
    )
    config.check_free()
    click.echo(f"loading {flags['model']}", err=True)
    placement["pace_step_s"] = flags["pace_step_ms"] / 1e3
    draft = None if flags["draft"] == "none" else flags["draft"]
    engine = build_engine(flags["model"], engine_config, draft=draft, team=team, **placement)

    def ready(address: str) -> None:
        if ready_file is not None:
            partial = ready_file.with_name(ready_file.name + ".partial")
            partial.write_text(address)
            partial.replace(ready_file)
        click.echo(f"serving {engine.runner.loaded.name} on {address}", err=True)

    async def run() -> None:
        await Server(engine, config).serve_until_signal(ready, team.failure)

    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run())
    except UnavailableError:
        team.abandon()
    team.close()


@cloud.command()
@engine_options
@answer_options
@prompt_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def generate(prompt: str, system: str, *, chat: bool, ignore_eos: bool, as_json: bool, **flags: Any) -> None:
    """Decode plainly, without network and drafts: the reference for every session."""
    from outrider_cloud import generate as plain  # noqa: PLC0415 - torch is slow to import
    from outrider_cloud.build import build_engine  # noqa: PLC0415

    params = sampling_params(flags)
    engine = build_engine(flags["model"], _engine_config(flags), shards=flags["shards"] or 1, **_placement(flags))
    loaded = engine.runner.loaded
    text, chat = prompt_text(loaded.chat_template, prompt, system, chat=chat)
    # A chat template writes the special tokens itself.
    ids = loaded.tokenizer.encode(text, add_special_tokens=not chat).ids
    answer = plain.generate(engine, ids, params, flags["max_tokens"], ignore_eos=ignore_eos)
    result = {
        "text": loaded.tokenizer.decode(answer.tokens, skip_special_tokens=True),
        "token_ids": answer.tokens,
        "cloud_steps": answer.usage.steps,
        "tokens_per_step": len(answer.tokens) / max(1, answer.usage.steps),
        "finish": answer.finish,
        "wall_s": answer.wall_s,
    }
    click.echo(json.dumps(result) if as_json else result["text"])


def _engine_config(flags: dict[str, Any]) -> EngineConfig:
    from outrider_cloud.engine.config import EngineConfig  # noqa: PLC0415 - keeps `--help` quick

    names = ("exact", "kv_tokens", "buckets", "row_budget", "max_sessions", "lease_s")
    given = {name: flags[name] for name in names if name in flags}
    if "hold_ms" in flags:
        given["hold_s"] = flags["hold_ms"] / 1e3
    return EngineConfig(**given)


def _placement(flags: dict[str, Any]) -> Placement:
    from outrider_cloud.model.weights import Weights  # noqa: PLC0415 - torch is slow to import

    return {
        "threads": flags["threads"],
        "weights": Weights(flags["weights"]),
        "device": flags["device"],
        "dtype": flags["dtype"] or "",
    }


def _another_rank(flags: dict[str, Any]) -> list[str]:
    """The command of a rank that follows: what decides how steps are computed, and nothing of the service."""
    command = [sys.executable, "-m", "outrider_cloud.cli", "serve"]
    same = ("model", "device", "dtype", "weights", "threads", "row_budget", "kv_tokens", "tensor_parallel", "shards")
    for name in same:
        if flags[name] is not None:
            command += [f"--{name.replace('_', '-')}", str(flags[name])]
    buckets = ",".join(map(str, flags["buckets"]))
    return [*command, "--buckets", buckets, "--exact" if flags["exact"] else "--no-exact"]


def _replay(flags: dict[str, Any]) -> ReplayConfig | None:
    from outrider_cloud.replay.store import ReplayConfig  # noqa: PLC0415 - keeps `--help` quick

    if flags["replay_dir"] is None:
        return None
    return ReplayConfig(
        flags["replay_dir"], int(flags["replay_cap_mb"] * (1 << 20)), flags["replay_keep_days"] * 86400.0
    )


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> Any:
    from outrider_cloud.service.config import TlsFiles  # noqa: PLC0415 - keeps `--help` quick

    if certificate is None and key is None:
        if client_ca is not None:
            raise ConfigError("--tls-client-ca needs --tls-cert and --tls-key")
        return None
    if certificate is None or key is None:
        raise ConfigError("--tls-cert and --tls-key belong together")
    return TlsFiles(certificate, key, client_ca)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cloud()
