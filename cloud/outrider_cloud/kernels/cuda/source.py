"""The kernels' text, per variant: which file, for which head size and 16-bit type."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING

import torch

from outrider_shared.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD_SIZES = (64, 96, 128, 256)
DTYPES = (torch.bfloat16, torch.float16)
# Positions of one split of attention: part of the exact contract, since it fixes the order of sums.
SPLIT = 256
# Blocks that may share a row of logits, and the threads of each.
RANKS, THREADS = (8, 4, 2, 1), 384
# Shared memory of a block of the sampling kernel, its lists aside: `Shared` of sampling.cu, rounded up.
SAMPLING_BYTES = 5 << 10
# For NVRTC. Products are fused where the text says fmaf and nowhere else, as in numpy.
OPTIONS = ("--std=c++17", "--fmad=false")
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Variant:
    """One module to compile.

    Attributes:
        file: Name of the `.cu` file, without its ending.
        defines: Macros, sorted by name.
        kernels: Entry points, each with the size of its cluster.
        much_shared: Whether they may ask for more than 48 KiB of dynamic shared memory.
    """

    file: str
    defines: tuple[tuple[str, int], ...]
    kernels: tuple[tuple[str, int], ...]
    much_shared: bool = False

    @property
    def name(self) -> str:
        """For logs and file names."""
        return "-".join([self.file, *(f"{key.lower()}{value}" for key, value in self.defines)])

    def cluster(self, kernel: str) -> int:
        """Blocks in a cluster of an entry point."""
        return dict(self.kernels)[kernel]

    def text(self) -> str:
        """CUDA C++ with its macros and all that it includes in place."""
        defines = "".join(f"#define {name} {value}\n" for name, value in self.defines)
        return defines + _INCLUDE.sub(lambda found: _read(found[1]), _read(f"{self.file}.cu"))


@functools.cache
def _read(name: str) -> str:
    return (files("outrider_cloud.kernels.cuda") / name).read_text()


def host_header(*, races: bool = False) -> str:
    """What lets the same text run on the CPU; with `races`, interleaved and watched."""
    parts = ("host.h", "races.h", "builtins.h") if races else ("host.h", "builtins.h")
    return ("#define OUTRIDER_RACES 1\n" if races else "") + "\n".join(_read(part) for part in parts)


def attention_variant(head: int, dtype: torch.dtype) -> Variant:
    """Attention for one head size.

    Raises:
        ModelError: if there is none.
    """
    if head not in HEAD_SIZES:
        raise ModelError(
            f"the GPU kernels have no head size {head}",
            hint=f"they have {', '.join(map(str, HEAD_SIZES))}; serve this model with --device cpu",
        )
    return _variant("attention", dtype, (("attention_split", 1), ("attention_combine", 1)), HEAD_DIM=head, SPLIT=SPLIT)


def attention_bytes(head: int) -> int:
    """Shared memory of a block of attention: 16 rows of sums, and a maximum and a sum of each row and warp."""
    return 4 * (16 * (min(head, 128) + 4) + 2 * 16 * (SPLIT // 32))


def layers_variant(dtype: torch.dtype) -> Variant:
    """Norms, rotary embedding, activation."""
    return _variant("layers", dtype, (("rms_norm", 1), ("silu_mul", 1), ("rope_store", 1)))


def kv_variant(dtype: torch.dtype) -> Variant:
    """Store and move."""
    return _variant("kv", dtype, (("kv_store", 1), ("kv_move", 1)))


def sampling_variant(dtype: torch.dtype, ranks: int = RANKS[0], threads: int = THREADS) -> Variant:
    """The sampling rule, with `ranks` blocks of `threads` threads a row."""
    sizes = {"RANKS": ranks, "THREADS": threads, "SHARED_BYTES": SAMPLING_BYTES}
    return replace(_variant("sampling", dtype, (("sample_rows", ranks),), **sizes), much_shared=True)


def variants() -> Iterator[Variant]:
    """Every module that there is."""
    for dtype in DTYPES:
        yield from (attention_variant(head, dtype) for head in HEAD_SIZES)
        yield from (layers_variant(dtype), kv_variant(dtype))
        yield from (sampling_variant(dtype, ranks) for ranks in RANKS)


def _variant(file: str, dtype: torch.dtype, kernels: tuple[tuple[str, int], ...], **defines: int) -> Variant:
    if dtype not in DTYPES:
        raise ModelError(
            f"the GPU kernels do not compute in {str(dtype).removeprefix('torch.')}",
            hint="give --dtype bfloat16 or float16, or serve with --device cpu",
        )
    if dtype == torch.float16:
        defines["OUTRIDER_FP16"] = 1
    return Variant(file, tuple(sorted(defines.items())), kernels)
