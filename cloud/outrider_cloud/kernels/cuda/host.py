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
_FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w", "-march=native")


class HostLauncher:
    """Runs kernels on tensors in ordinary memory.

    Args:
        cache: Folder of compiled modules; by default `outrider/kernels` in the user's cache.

    Raises:
        ConfigError: if there is no g++.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self.device = torch.device("cpu")
        self.processors = 1
        compiler = shutil.which("g++")
        if compiler is None:
            raise ConfigError("the host build of the kernels needs g++", hint="install g++ 12 or newer")
        self._compiler = compiler
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._cache = cache or Path(base) / "outrider" / "kernels"
        self._modules: dict[Variant, ctypes.CDLL] = {}

    def launch(
        self,
        variant: Variant,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        arguments: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel to its end; see `Launcher`."""
        values = [_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        shape = (ctypes.c_uint * 4)(*grid, threads)
        run = getattr(self._module(variant), f"run_{kernel}")
        run.restype = None
        run(shape, ctypes.c_size_t(shared_bytes), pointers)

    def _module(self, variant: Variant) -> ctypes.CDLL:
        if variant not in self._modules:
            self._modules[variant] = ctypes.CDLL(str(self._build(variant)))
        return self._modules[variant]

    def _build(self, variant: Variant) -> Path:
        exports = "".join(f"EXPORT_KERNEL({name}, {cluster})\n" for name, cluster in variant.kernels)
        text = f"#define OUTRIDER_HOST 1\n{variant.text()}\n{exports}"
        # Behind the macros, which choose the 16-bit type.
        head, device = text.split("// What every kernel stands on", 1)
        text = f"{head}{host_header()}\n// What every kernel stands on{device}"
        digest = hashlib.sha256("\0".join((text, self._compiler, *_FLAGS)).encode()).hexdigest()[:16]
        built = self._cache / f"{variant.name}-{digest}.so"
        if built.is_file():
            return built
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache) as folder:
            source, partial = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
            source.write_text(text)
            command = [self._compiler, *_FLAGS, "-o", str(partial), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own text
            if done.returncode:
                raise InternalError(f"{variant.name} does not compile for the host: {done.stderr[:2000]}")
            partial.replace(built)
        return built


def _value(argument: Argument) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_int32 | ctypes.c_float:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, Long):
        return ctypes.c_int64(argument.value)
    return ctypes.c_int32(argument) if isinstance(argument, int) else ctypes.c_float(argument)
