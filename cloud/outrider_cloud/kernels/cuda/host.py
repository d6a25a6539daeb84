"""The kernels on the CPU: compiled by g++ once per variant, a fiber for each thread. For tests, not for speed."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from outrider_cloud.kernels.cuda.launch import Argument, Long
from outrider_cloud.kernels.cuda.source import Variant, host_header
from outrider_shared.errors import ConfigError, InternalError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Products are fused where the text says so and nowhere else.
_FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-w", "-march=native")
# The compiler calls a function at every access; races.h has those, in place of ThreadSanitizer's library.
_WATCHED = ("-fsanitize=thread",)


class HostLauncher:
    """Runs kernels on tensors in ordinary memory.

    Args:
        cache: Folder of compiled modules; by default `outrider/kernels` in the user's cache.
        races: Run the threads of a block interleaved in a random order, of which this is the seed, and refuse accesses
            that no barrier orders, that are not aligned, or lie beyond all tensors. Much slower.
        shared_bytes: Shared memory of a block, as some card has it; by default a Hopper's.

    Raises:
        ConfigError: if there is no g++.
    """

    def __init__(self, cache: Path | None = None, races: int | None = None, shared_bytes: int = 227 << 10) -> None:
        self.device = torch.device("cpu")
        self.processors = 1
        self.shared_bytes = shared_bytes
        compiler = shutil.which("g++")
        if compiler is None:
            raise ConfigError("the host build of the kernels needs g++", hint="install g++ 12 or newer")
        self._compiler = compiler
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._cache = cache or Path(base) / "outrider" / "kernels"
        self._modules: dict[Variant, ctypes.CDLL] = {}
        self._races = races

    def launch(
        self,
        variant: Variant,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        arguments: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel to its end; see `Launcher`.

        Raises:
            InternalError: if its threads wait for each other in vain; with `races`, if they do what these tell.
        """
        values = [_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        shape = (ctypes.c_uint * 4)(*grid, threads)
        run = getattr(self._module(variant), f"run_{kernel}")
        run.restype = ctypes.c_char_p
        given = [end for argument in arguments if isinstance(argument, torch.Tensor) for end in _ends(argument)]
        wrong = run(
            shape, ctypes.c_size_t(shared_bytes), pointers, ctypes.c_uint(self._races or 0),
            (ctypes.c_size_t * len(given))(*given), ctypes.c_size_t(len(given) // 2),
        )  # fmt: skip
        if wrong is not None:
            raise InternalError(f"{kernel} of {variant.name} on the host: {wrong.decode()}")

    def _module(self, variant: Variant) -> ctypes.CDLL:
        if variant not in self._modules:
            self._modules[variant] = ctypes.CDLL(str(self._build(variant)))
        return self._modules[variant]

    def _build(self, variant: Variant) -> Path:
        exports = "".join(f"EXPORT_KERNEL({name}, {cluster})\n" for name, cluster in variant.kernels)
        text = f"#define OUTRIDER_HOST 1\n{variant.text()}\n{exports}"
        # Behind the macros, which choose the 16-bit type.
        head, device = text.split("// What every kernel stands on", 1)
        watched = self._races is not None
        text = f"{head}{host_header(races=watched)}\n// What every kernel stands on{device}"
        flags = (*_FLAGS, *(_WATCHED if watched else ()))
        digest = hashlib.sha256("\0".join((text, self._compiler, *flags)).encode()).hexdigest()[:16]
        built = self._cache / f"{variant.name}-{digest}.so"
        if built.is_file():
            return built
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache) as folder:
            source, compiled, partial = (Path(folder) / f"kernel.{end}" for end in ("cpp", "o", "so"))
            source.write_text(text)
            # In two steps: asked for both, the compiler would link ThreadSanitizer's library.
            for command in (
                [self._compiler, *flags, "-c", "-o", str(compiled), str(source)],
                [self._compiler, "-shared", "-o", str(partial), str(compiled)],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own text
                if done.returncode:
                    raise InternalError(f"{variant.name} does not compile for the host: {done.stderr[:2000]}")
            partial.replace(built)
        return built


def _ends(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first and last byte."""
    first = tensor.data_ptr()
    if tensor.numel() == 0:
        return first + 1, first  # none
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * tensor.element_size() - 1


def _value(argument: Argument) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_int32 | ctypes.c_float:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, Long):
        return ctypes.c_int64(argument.value)
    return ctypes.c_int32(argument) if isinstance(argument, int) else ctypes.c_float(argument)
