"""What the launcher asks of CuPy, which is not here: the stream of every launch, arguments by size, shared memory."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from outrider_cloud.kernels.cuda import gpu
from outrider_cloud.kernels.cuda.launch import Long
from outrider_cloud.kernels.cuda.source import kv_variant, sampling_variant

MOST = 227 * 1024


class Recorder:
    """In the place of CuPy: notes what is compiled, on which stream it is launched, and with what."""

    def __init__(self):
        self.launched, self.functions, self.stream = [], [], None
        self.cuda = SimpleNamespace(Device=contextlib.nullcontext, Stream=SimpleNamespace(from_external=self.on))

    @contextlib.contextmanager
    def on(self, stream):
        self.stream = stream.__cuda_stream__()
        yield
        self.stream = None

    def RawModule(self, code, options, backend):  # noqa: N802 - CuPy's name
        assert (code, backend) == (code.strip("\0"), "nvrtc")
        assert "--fmad=false" in options
        return self

    def get_function(self, name):
        function = Function(name, self)
        self.functions.append(function)
        return function


class Function:
    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, name, recorder):
        self.name, self._recorder = name, recorder

    def __call__(self, grid, block, arguments, shared_mem):
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        self._recorder.launched.append((self.name, self._recorder.stream, arguments))


@pytest.fixture
def launcher(monkeypatch):
    """A launcher over the recorder, and the recorder."""
    recorder = Recorder()
    properties = SimpleNamespace(multi_processor_count=132, shared_memory_per_block_optin=MOST)
    monkeypatch.setattr(gpu, "check_gpu", lambda _: None)
    monkeypatch.setattr(gpu, "_cupy", lambda: recorder)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return gpu.GpuLauncher(torch.device("cuda")), recorder


def test_the_stream_is_asked_for_at_every_launch(launcher, monkeypatch):
    """One that was remembered from outside a capture would leave the graph empty."""
    ours, recorder = launcher
    for address in (0, 77, 91):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _, at=address: SimpleNamespace(cuda_stream=at))
        ours.launch(kv_variant(torch.bfloat16), "kv_move", (1, 1, 1), 32, (1,))
    assert [stream for _, stream, _ in recorder.launched] == [(0, 0), (0, 77), (0, 91)]
    assert len(recorder.functions) == 1


def test_a_launch_with_less_shared_memory_does_not_lower_the_limit_of_others(launcher, monkeypatch):
    """The limit belongs to the card's function: models with different vocabularies share it."""
    ours, recorder = launcher
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    for shared in (110_000, 60_000, 110_000):
        ours.launch(sampling_variant(torch.bfloat16), "sample_rows", (8, 1, 1), 512, (), shared)
    assert [function.max_dynamic_shared_size_bytes for function in recorder.functions] == [MOST]
    assert len(recorder.launched) == 3


def test_arguments_have_the_sizes_of_the_kernels_parameters(launcher, monkeypatch):
    """Addresses and longs 64 bits, integers and floats 32, nothing is a null address."""
    ours, recorder = launcher
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    tensor = torch.zeros(3)
    ours.launch(kv_variant(torch.float16), "kv_move", (1, 1, 1), 32, (tensor, None, 5, Long(1 << 40), 0.5))
    values = recorder.launched[0][2]
    assert [type(value) for value in values] == [np.uint64, np.uint64, np.int32, np.int64, np.float32]
    assert values[0] == tensor.data_ptr()
    assert values[1] == 0
