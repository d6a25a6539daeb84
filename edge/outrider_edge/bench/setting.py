"""What measurements of the link have in common: which requests, on which machine, by which command, how wide."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from tokenizers import Tokenizer

from outrider_edge.compare import BUNDLED, read_requests
from outrider_edge.session.events import GenerateRequest
from outrider_shared.chat import render_chat
from outrider_shared.errors import ConfigError
from outrider_shared.packs import bundled_pack, read_pack
from outrider_shared.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Mapping

_WIDTH = 160


def bench_requests(flags: Mapping[str, Any]) -> list[GenerateRequest]:
    """The requests that the flags --requests, --skip, --count, --draft, --max-tokens, --temperature and --seed say.

    Raises:
        ConfigError: if none is left.
    """
    pack = read_pack(bundled_pack() if flags["draft"] == BUNDLED else flags["draft"])
    tokenizer = Tokenizer.from_file(str(pack.tokenizer_path))
    params = SamplingParams(flags["temperature"], seed=flags["seed"])
    conversations = read_requests(flags["requests"])[flags["skip"] :][: flags["count"]]
    if not conversations:
        raise ConfigError(f"no request is left of {flags['requests']} after skipping {flags['skip']}")
    texts = [render_chat(pack.chat_template or "", messages) for messages in conversations]
    prompts = [tuple(tokenizer.encode(text).ids) for text in texts]
    ignore_eos = bool(flags.get("ignore_eos"))
    return [GenerateRequest(p, flags["max_tokens"], params, ignore_eos=ignore_eos) for p in prompts]


def bench_command(name: str) -> str:
    """How this measurement was asked for."""
    arguments = sys.argv[1:]
    return shlex.join(["outrider", "bench", name, *arguments[2 if arguments[:2] == ["bench", name] else 0 :]])


def wide_console() -> Console:
    """Where tables go: as wide as the terminal; in a file no column is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def machine() -> dict[str, Any]:
    """Where it was made."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "cpu": next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
        ),
        "cores": os.cpu_count(),
        "load_at_end": os.getloadavg()[0],
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "grpcio": version("grpcio"),
    }
