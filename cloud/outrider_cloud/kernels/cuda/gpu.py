"""The kernels on an NVIDIA GPU: compiled by CuPy with NVRTC when first used, launched on torch's current stream."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from outrider_cloud.kernels.cuda.launch import Argument, Long
from outrider_cloud.kernels.cuda.source import OPTIONS
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.kernels.cuda.source import Variant

# Clusters of blocks, which the sampling kernel needs, came with compute capability 9.0 (H100, H200).
_LEAST_CAPABILITY = (9, 0)
_CPU = "or serve with --device cpu"


def check_gpu(device: torch.device) -> None:
    """Refuse a machine that cannot run the kernels, with what to do about it.

    Raises:
        ConfigError: if torch has no CUDA, there is no driver or no such card, the card is too old, or CuPy is missing.
    """
    if torch.version.cuda is None:
        raise ConfigError(
            f"--device {device} was asked for, but this torch ({torch.__version__}) is built without CUDA",
            hint=f"install a CUDA build of torch, {_CPU}",
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            f"--device {device} was asked for, but no NVIDIA driver answers",
            hint=f"look at nvidia-smi (in a container: is the card passed through?), {_CPU}",
        )
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        raise ConfigError(f"--device {device} was asked for, but there are {count} cards", hint="they count from 0")
    capability = torch.cuda.get_device_capability(index)
    if capability < _LEAST_CAPABILITY:
        raise ConfigError(
            f"{torch.cuda.get_device_name(index)} has compute capability {capability[0]}.{capability[1]}",
            hint=f"the kernels need 9.0 or newer (H100, H200), {_CPU}",
        )
    _cupy()


def shared_bytes(device: torch.device) -> int:
    """Most shared memory that a block may ask for on a card: 227 KiB on a Hopper, 99 KiB where capability is 12.x."""
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise ConfigError(
            f"the GPU kernels need CuPy, which cannot be imported: {error}", hint="pip install 'outrider[gpu]'"
        ) from error


@dataclass(frozen=True, slots=True)
class _Stream:
    """A stream by its address, in the protocol that CuPy asks for; torch's own streams have it in later versions."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


class GpuLauncher:
    """Launches on one card. Capturable: nothing is allocated, and the stream is asked for at every launch.

    Args:
        device: The card.

    Raises:
        ConfigError: as `check_gpu`.
    """

    def __init__(self, device: torch.device) -> None:
        check_gpu(device)
        self.device = torch.device("cuda", device.index or 0)
        properties = torch.cuda.get_device_properties(self.device)
        self.processors = properties.multi_processor_count
        self.shared_bytes = shared_bytes(self.device)
        self._cupy = _cupy()
        self._kernels: dict[tuple[Variant, str], Any] = {}

    def launch(
        self,
        variant: Variant,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        arguments: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """Start a kernel; see `Launcher`."""
        values = tuple(_value(argument) for argument in arguments)
        # A stream remembered from outside a capture would record an empty graph.
        stream = _Stream(torch.cuda.current_stream(self.device).cuda_stream)
        with self._cupy.cuda.Device(self.device.index), self._cupy.cuda.Stream.from_external(stream):
            found = self._kernel(variant, kernel)
            found(grid, (threads, 1, 1), values, shared_mem=shared_bytes)

    def _kernel(self, variant: Variant, kernel: str) -> Any:
        key = (variant, kernel)
        if key not in self._kernels:
            module = self._cupy.RawModule(code=variant.text(), options=OPTIONS, backend="nvrtc")
            try:
                function = module.get_function(kernel)  # compiles, or takes what was compiled before from CuPy's cache
            except Exception as error:
                raise ConfigError(
                    f"CuPy cannot compile the kernels of {variant.name} here: {error}",
                    hint="`outrider kernels check` compiles them without CuPy; do driver and CuPy fit (CUDA 13)?",
                ) from error
            if variant.much_shared:  # a limit of the card's function, whoever launches it: so the most there is
                function.max_dynamic_shared_size_bytes = self.shared_bytes
            self._kernels[key] = function
        return self._kernels[key]


def _value(argument: Argument) -> Any:
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, torch.Tensor):
        return np.uint64(argument.data_ptr())
    if isinstance(argument, Long):
        return np.int64(argument.value)
    return np.int32(argument) if isinstance(argument, int) else np.float32(argument)
