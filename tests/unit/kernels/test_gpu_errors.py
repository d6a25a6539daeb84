"""What a machine without a fitting GPU is told; the CPU goes on."""

from __future__ import annotations

import pytest
import torch

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.kernels.cuda import gpu
from outrider_shared.errors import ConfigError

CUDA = torch.device("cuda")


def test_a_torch_without_cuda_is_told(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match=r"built without CUDA.*--device cpu"):
        gpu.check_gpu(CUDA)


@pytest.fixture
def card(monkeypatch):
    """A machine that claims one card of a chosen capability; nothing here touches it."""

    def claim(capability, count=1):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")

    return claim


def test_no_driver(card):
    card((9, 0), count=0)
    with pytest.raises(ConfigError, match=r"no NVIDIA driver answers.*nvidia-smi"):
        gpu.check_gpu(CUDA)


def test_an_older_card(card):
    card((8, 0))
    with pytest.raises(ConfigError, match=r"A100 has compute capability 8.0.*9.0 or newer"):
        gpu.check_gpu(CUDA)


def test_a_card_that_is_not_there(card):
    card((9, 0))
    with pytest.raises(ConfigError, match="cuda:3 was asked for, but there are 1 cards"):
        gpu.check_gpu(torch.device("cuda:3"))


def test_cupy_missing(card, monkeypatch):
    card((9, 0))

    def missing(_):
        raise ImportError("No module named 'cupy'")

    monkeypatch.setattr(gpu.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"need CuPy.*outrider\[gpu\]"):
        gpu.check_gpu(CUDA)


def test_devices_and_types_that_make_no_sense(tiny):
    for device in ("tpu", "meta", "cuda:x"):
        with pytest.raises(ConfigError, match="cpu, cuda or cuda:N"):
            build_engine(tiny, EngineConfig(kv_tokens=256), device=device)
