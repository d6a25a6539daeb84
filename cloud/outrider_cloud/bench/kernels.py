"""`outrider bench kernels`: each kernel beside its torch reference, its results held to that reference first.

On a card every time is the device's own, with cold caches, and bytes per second are told as a part of what a large copy
reaches in the same run. On a CPU the kernels' text runs through the host build, whose times mean nothing: there only
the largest error is told of ours, and times of torch's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from outrider_cloud.bench.jobs import Job
from outrider_cloud.bench.stopwatch import Stopwatch
from outrider_cloud.kernels.cuda.gpu import GpuLauncher
from outrider_cloud.kernels.cuda.host import HostLauncher
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from outrider_cloud.kernels.cuda.launch import Launcher


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        contexts: Tokens before the rows, for attention.
        rows: Of a session, for attention.
        sessions: At once, for attention.
        steps: Rows of a step, for what lies between the products.
        sampled: Rows of logits.
        products: Rows of matrix products: where weights stop being what a step waits for.
    """

    contexts: tuple[int, ...]
    rows: tuple[int, ...]
    sessions: int
    steps: tuple[int, ...]
    sampled: int
    products: tuple[int, ...]


ON_A_CARD = Sizes((512, 2048, 8192, 32768), (1, 5, 8, 9, 17), 8, (1, 32, 128, 256), 128, (1, 8, 32, 64, 128, 256))
ON_A_CPU = Sizes((64, 300), (1, 8), 2, (5,), 3, (4,))


@dataclass
class Case:
    """One kernel at one size, ready to run.

    Attributes:
        bytes: Least that it reads and writes.
        ours: Runs the kernel.
        error: Runs it, and gives the largest deviation from the reference.
        peers: Others that do the same, by name; a text tells why one is not there.
        fields: What else is told.
    """

    bytes: int
    ours: Callable[[], Any]
    error: Callable[[], float]
    peers: dict[str, Callable[[], Any] | str]
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """Where and what the cases run.

    Attributes:
        launcher: Of the device, or the host build.
        device: Of all tensors.
        dtype: 16 bits.
        shape: Name of the model's shape.
        sizes: See there.
    """

    launcher: Launcher
    device: torch.device
    dtype: torch.dtype
    shape: str
    sizes: Sizes


def kernel_jobs(shape: str, device: torch.device, dtype: torch.dtype, warmup: int, repeats: int) -> list[Job]:
    """The jobs of a model's shape: the copy bandwidth first, since the others are measured against it.

    Raises:
        ConfigError: if the device cannot run the kernels, or no host build can be made.
    """
    from outrider_cloud.bench.kernel_attention import attention_cases  # noqa: PLC0415 - they import this module
    from outrider_cloud.bench.kernel_layers import layer_cases  # noqa: PLC0415
    from outrider_cloud.bench.kernel_products import product_cases  # noqa: PLC0415
    from outrider_cloud.bench.kernel_sampling import sampling_cases  # noqa: PLC0415

    if dtype not in {torch.bfloat16, torch.float16}:
        raise ConfigError("the kernels compute in 16 bits", hint="give --dtype bfloat16 or float16")
    on_card = device.type == "cuda"
    launcher: Launcher = GpuLauncher(device) if on_card else HostLauncher()
    setup = Setup(launcher, device, dtype, shape, ON_A_CARD if on_card else ON_A_CPU)
    watch = Stopwatch(device, warmup, repeats)
    bandwidth: list[float] = []

    def copy() -> dict[str, Any]:
        bandwidth.append(watch.copy_bytes_per_s())
        return {"gb_per_s": bandwidth[0] / 1e9}

    def measured(make: Callable[[], Case]) -> Callable[[], dict[str, Any]]:
        return lambda: measure(make(), watch, bandwidth[0])

    named: Iterator[tuple[str, Callable[[], Case]]] = (
        case for cases in (attention_cases, sampling_cases, layer_cases, product_cases) for case in cases(setup)
    )
    return [Job("copy bandwidth", copy), *(Job(name, measured(make)) for name, make in named)]


def measure(case: Case, watch: Stopwatch, copy_bytes_per_s: float) -> dict[str, Any]:
    """Error, times, and bytes per second of one case."""
    told: dict[str, Any] = {**case.fields, "bytes": case.bytes, "max_error": case.error(), "ours": None}
    if watch.device.type == "cuda":
        spread = watch.on_device(case.ours)
        rate = case.bytes / spread.median
        told |= {"ours": spread.as_us(), "gb_per_s": rate / 1e9, "of_copy": rate / copy_bytes_per_s}
    told["floor_us"] = case.bytes / copy_bytes_per_s * 1e6
    told["peers"] = {name: _peer(watch, work) for name, work in case.peers.items()}
    return told


def _peer(watch: Stopwatch, work: Callable[[], Any] | str) -> dict[str, Any]:
    if isinstance(work, str):
        return {"missing": work}
    try:
        return watch.on_device(work).as_us()
    except Exception as error:  # noqa: BLE001 - whatever a peer cannot do here is told, and ours goes on
        return {"missing": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}


def ratios(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What 8 rows a session cost of what 1 row does, by context, ours and torch's."""
    found = {(r["context"], r["rows"]): r for r in results if r.get("kernel") == "attention" and "failed" not in r}
    told = []
    for context in sorted({context for context, _ in found}):
        one, eight = found.get((context, 1)), found.get((context, 8))
        if one is None or eight is None:
            continue
        entry: dict[str, Any] = {"context": context}
        if one["ours"] and eight["ours"]:
            entry["ours"] = eight["ours"]["median_us"] / one["ours"]["median_us"]
        for name in one["peers"].keys() & eight["peers"].keys():
            times = [r["peers"][name].get("median_us") for r in (one, eight)]
            if all(times):
                entry[name] = times[1] / times[0]
        told.append(entry)
    return told
