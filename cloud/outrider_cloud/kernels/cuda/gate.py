"""Compiles every variant for a GPU that need not be there, and reads what ptxas says of registers and spills.

NVRTC alone is needed (`pip install outrider[gpu]`, or the wheel `nvidia-cuda-nvrtc`): no driver, no card, no nvcc.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from outrider_cloud.kernels.cuda.source import OPTIONS, Variant, variants
from outrider_shared.errors import ConfigError, InternalError

ARCHITECTURE = "sm_90a"
# CuPy compiles with this, whatever it is told: float32 values below 2^-126 are zero on the card.
_ADDED_BY_CUPY = ("--ftz=true",)
_ENTRY = re.compile(r"Compiling entry function '(\w+)'.*?(?=Compiling entry function|\Z)", re.DOTALL)
_SPILL = re.compile(r"(\d+) bytes spill (?:stores|loads)")
_STACK = re.compile(r"(\d+) bytes stack frame")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True, slots=True)
class Compiled:
    """One entry point as compiled.

    Attributes:
        variant, kernel: Which.
        registers: Of a thread.
        spill_bytes: Stores and loads of registers that did not fit; must be 0.
        stack_bytes: Local memory of a thread; must be 0.
        cubin_bytes: Size of the whole module.
    """

    variant: str
    kernel: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    cubin_bytes: int


class Nvrtc:
    """NVIDIA's run-time compiler through its C interface.

    Raises:
        ConfigError: if it is not installed.
    """

    def __init__(self) -> None:
        path = _library()
        if path is None:
            raise ConfigError("NVRTC is not installed", hint="pip install 'nvidia-cuda-nvrtc==13.0.*'")
        # The compiler looks for its built-ins by name only: here they are, wherever the package lies.
        for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(path))

    @property
    def version(self) -> str:
        """Major and minor."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def compile(self, variant: Variant, architecture: str = ARCHITECTURE) -> list[Compiled]:
        """Machine code of a variant, thrown away; what is kept is what it needs.

        Raises:
            InternalError: if it does not compile.
        """
        program, text = ctypes.c_void_p(), variant.text().encode()
        name = f"{variant.name}.cu".encode()
        self._library.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None)
        try:
            options = (f"--gpu-architecture={architecture}", *OPTIONS, *_ADDED_BY_CUPY, "--ptxas-options=-v")
            given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            failed = self._library.nvrtcCompileProgram(program, len(options), given)
            log = self._text(program, "ProgramLog")
            if failed:
                raise InternalError(f"{variant.name} does not compile for {architecture}: {log[:2000]}")
            size = ctypes.c_size_t()
            self._library.nvrtcGetCUBINSize(program, ctypes.byref(size))
            return _read_log(variant, log, size.value)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> str:
        size = ctypes.c_size_t()
        getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self._library, f"nvrtcGet{what}")(program, buffer)
        return buffer.value.decode()


def check(architecture: str = ARCHITECTURE) -> list[Compiled]:
    """Compile everything.

    Raises:
        ConfigError: without NVRTC.
        InternalError: if a variant does not compile, or spills.
    """
    nvrtc = Nvrtc()
    compiled = [entry for variant in variants() for entry in nvrtc.compile(variant, architecture)]
    spilling = [c for c in compiled if c.spill_bytes or c.stack_bytes]
    if spilling:
        told = ", ".join(f"{c.variant} {c.kernel}: {c.spill_bytes} + {c.stack_bytes} bytes" for c in spilling)
        raise InternalError(f"registers spill or local memory is used for {architecture}: {told}")
    return compiled


def _read_log(variant: Variant, log: str, cubin_bytes: int) -> list[Compiled]:
    found = {}
    for entry in _ENTRY.finditer(log):
        part = entry[0]
        found[entry[1]] = Compiled(
            variant.name,
            entry[1],
            int(next(iter(_REGISTERS.findall(part)), 0)),
            sum(map(int, _SPILL.findall(part))),
            sum(map(int, _STACK.findall(part))),
            cubin_bytes,
        )
    missing = {name for name, _ in variant.kernels} - found.keys()
    if missing:
        raise InternalError(f"the compiler's log of {variant.name} does not tell of {', '.join(sorted(missing))}")
    return list(found.values())


def _library() -> Path | None:
    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu13"):
        try:
            listed = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        for file in listed:
            if file.name.startswith("libnvrtc.so"):
                return Path(str(file.locate()))
    return None
