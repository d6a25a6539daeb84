#!/usr/bin/env python3
"""Everything that wants a GPU, in one go: kernels and graphs first, then the benches, then the sanitizer.

    python tests/gpu/run.py                    all parts on the first card, in order
    python tests/gpu/run.py products kernels   some of them
    python tests/gpu/run.py --limit-s 840      as many as are through within fourteen minutes
    python tests/gpu/run.py --host             the same on a CPU, in small: to see that the script works

Runs from a source tree that is not installed, on a machine that has torch, transformers, CuPy and pytest; what else a
part needs is looked for first, and a part whose modules are missing is named and left out. Results are JSON files with
date and GPU in their names, in $OUT or tests/bench/results; they are written as they come, so a part that is stopped
has left what it had, and how each part ended is in the one that ends in -parts.json. Every part has its own time limit,
below ten minutes.

Which file has what:
    findings            bits of a row by its place and neighbours in cuBLAS' products, at the sizes of buckets
    kernels             attention with 8 rows and 1 at 512 to 32k tokens; sampling beside one read of the logits
    step                decoding beside the copy bandwidth, 128 rows beside 1, what our code adds, exact mode's price
    compiled            the same steps by torch.compile
    peers               transformers' ways to generate, 1, 8 and 32 sessions, plain and drafted at equal acceptance
    parts               tests passed or failed, compute-sanitizer among them
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATHS = [ROOT / "cloud", ROOT / "edge", ROOT / "shared", ROOT / "tests"]
# Only where the real one is missing: these paths come before what is installed.
STANDINS = {"structlog": ROOT / "tests" / "gpu" / "standins"}
BENCH = ["-m", "outrider_cloud.bench.cli"]
# Of the repository's settings none: they ask for plugins that a bare machine may lack.
PYTEST = ["-m", "pytest", "-q", "-ra", "-c", os.devnull, "--rootdir", "tests/gpu", "--confcutdir", "tests/gpu",
          "--import-mode=importlib", "-p", "no:cacheprovider", "--durations=5"]  # fmt: skip
INTERESTING = {
    "torch",
    "transformers",
    "cupy-cuda13x",
    "triton",
    "flashinfer-python",
    "protobuf",
    "pytest",
    "structlog",
}
# A part is not begun with less, and a bench begins nothing in the last of its time.
LEAST_S, LAST_S = 30, 40
# What keeps cuBLAS from cutting sums into parts: whether rows need it, and are exact with it, is to be seen.
PINNED = (("CUBLAS_WORKSPACE_CONFIG", ":16:8"), ("CUBLASLT_WORKSPACE_SIZE", "1"))
ENGINE = ("google.protobuf", "rich", "click")


@dataclass(frozen=True)
class Part:
    """One process: its arguments, what it needs beyond torch, and its time limit."""

    name: str
    arguments: list[str]
    needs: tuple[str, ...]
    limit_s: int
    out: str = ""
    bench: bool = False
    prefix: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def parts(results: Path, stem: str, *, host: bool) -> list[Part]:
    """What the next ones rest on first, then what is asked first of a card, then the rest."""

    def tests(name: str, file: str, needs: tuple[str, ...] = (), limit_s: int = 300) -> Part:
        return Part(name, [*PYTEST, f"tests/gpu/{file}"], ("pytest", *needs), limit_s)

    def bench(what: str, model: str, limit_s: int, *more: str, name: str = "") -> Part:
        out = results / f"{stem}-{name or what}-{model}.json"
        place = ["--device", "cpu" if host else "cuda", "--model", model, "--out", str(out)]
        arguments = [*BENCH, what, *place, *more]
        return Part(f"bench-{name or what}-{model}", arguments, ENGINE, limit_s, str(out), bench=True)

    llama, qwen = ("tiny-llama", "tiny-qwen3") if host else ("llama-3.1-8b", "qwen3-8b")
    few = ("--repeats", "2") if host else ()
    asked = ("--sessions", "1,2", "--prompt", "16", "--tokens", "12") if host else ()
    sanitizer = shutil.which("compute-sanitizer") or "compute-sanitizer"
    small = ["tests/gpu/test_3_kernels.py", "-k", "(trees and 128 and grouped) or sampling or moves or norms"]
    memcheck, racecheck = (
        Part(f"sanitizer-{tool}", [*PYTEST, *small], ("pytest",), 580,
             prefix=(sanitizer, "--tool", tool, "--error-exitcode", "86")) for tool in ("memcheck", "racecheck")
    )  # fmt: skip
    plain = ("--compiled", "without")
    return [
        tests("products", "test_1_products.py"),
        tests("graphs", "test_2_graphs.py"),
        tests("kernels", "test_3_kernels.py", limit_s=500),
        tests("steps", "test_4_steps.py"),
        bench("kernels", llama, 500, *few),
        bench("step", llama, 580, *plain, *few),
        bench("peers", llama, 580, *asked, *few),
        memcheck,
        bench("step", llama, 580, "--compiled", "alone", *few, name="compiled"),
        tests("refusals", "test_5_refusals.py"),
        replace(tests("products-pinned", "test_1_products.py"), environment=PINNED),
        tests("ranks", "test_6_ranks.py"),
        bench("kernels", qwen, 500, *few),
        bench("step", qwen, 580, *plain, *few),
        bench("peers", qwen, 580, *asked, *few),
        racecheck,
    ]


def main() -> int:
    """Run what was asked for; the status is that of the worst part."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("parts", nargs="*", help="names or beginnings of names; none is all")
    asked.add_argument("--host", action="store_true", help="on a CPU, in small")
    asked.add_argument("--list", action="store_true", help="name the parts and end")
    asked.add_argument("--limit-s", type=float, default=0.0, help="seconds for all parts together; 0 is no limit")
    given = asked.parse_args()
    results = Path(os.environ.get("OUT") or ROOT / "tests" / "bench" / "results")
    results.mkdir(parents=True, exist_ok=True)
    stem = f"{dt.datetime.now(dt.UTC).date().isoformat()}-{'host' if given.host else _card()}"
    chosen = [
        part
        for part in parts(results, stem, host=given.host)
        if not given.parts or any(part.name.startswith(name) for name in given.parts)
    ]
    if given.list:
        print("\n".join(part.name for part in chosen))
        return 0
    print(_versions(), flush=True)
    findings = results / f"{stem}-findings.json"
    ended: dict[str, str] = {}
    started = time.monotonic()
    for part in chosen:
        left = given.limit_s - (time.monotonic() - started) if given.limit_s else part.limit_s
        limited = replace(part, limit_s=min(part.limit_s, int(left)))
        ended[part.name] = _run(limited, findings, host=given.host) if left >= LEAST_S else "left out: no time is left"
        (results / f"{stem}-parts.json").write_text(json.dumps(ended, indent=1) + "\n")
    print("\n".join(f"{name:28} {how}" for name, how in ended.items()), flush=True)
    return int(any(how.startswith("FAILED") for how in ended.values()))


def _run(part: Part, findings: Path, *, host: bool) -> str:
    """How a part ended, in words."""
    missing = [name for name in part.needs if not _there(name)]
    if missing:
        return f"left out: needs {', '.join(missing)}"
    if part.prefix and (host or shutil.which(part.prefix[0]) is None):
        return "left out: no compute-sanitizer" if not host else "left out: it watches a card"
    paths = [*PATHS, *(folder for module, folder in STANDINS.items() if not _there(module))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OUTRIDER_FINDINGS": str(findings)}
    environment |= dict(part.environment)
    if host:
        environment |= {"OUTRIDER_GPU_TESTS": "host"}
    print(f"== {part.name}", flush=True)
    started = time.monotonic()
    last = ("--limit-s", str(max(1, part.limit_s - LAST_S))) if part.bench else ()
    try:
        status = subprocess.run(
            [*part.prefix, sys.executable, *part.arguments, *last],
            cwd=ROOT,
            env=environment,
            timeout=part.limit_s,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return f"FAILED: over {part.limit_s} s{f'; what it had is in {part.out}' if part.out else ''}"
    how = "passed" if status == 0 else f"FAILED with status {status}"
    return f"{how} in {time.monotonic() - started:.0f} s{f', {part.out}' if part.out else ''}"


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _card() -> str:
    """The card's name, as a part of a file's."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("no card answers; --host runs the same in small on a CPU")
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")


def _versions() -> str:
    """What is here of what the parts need."""
    told = {name: metadata.version(name) for name in INTERESTING & {found.name for found in metadata.distributions()}}
    missing = sorted(INTERESTING - told.keys())
    return f"python {sys.version.split()[0]}, {told}; not here: {', '.join(missing) or 'nothing'}"


if __name__ == "__main__":
    sys.exit(main())
