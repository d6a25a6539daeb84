"""Every kernel compiles for Hopper without a GPU, and nothing spills."""

from __future__ import annotations

import pytest
import torch

from outrider_cloud.kernels.cuda import gate, source
from outrider_cloud.kernels.cuda.source import Variant
from outrider_shared.errors import ConfigError, InternalError, ModelError


@pytest.fixture(scope="module")
def nvrtc():
    try:
        return gate.Nvrtc()
    except ConfigError as error:
        pytest.skip(str(error))


# Those that need most registers, and one of each file; `outrider kernels check` takes all.
VARIANTS = [
    source.attention_variant(128, torch.bfloat16),
    source.attention_variant(256, torch.bfloat16),
    source.attention_variant(96, torch.float16),
    source.sampling_variant(torch.bfloat16),
    source.sampling_variant(torch.float16, source.RANKS[-1]),
    source.layers_variant(torch.float16),
    source.kv_variant(torch.bfloat16),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_compiles_without_spills(nvrtc, variant):
    """NVRTC makes sm_90a machine code; ptxas reports no spill and no local memory."""
    for entry in nvrtc.compile(variant):
        assert entry.spill_bytes == 0
        assert entry.stack_bytes == 0
        assert 0 < entry.registers < 256


@pytest.mark.parametrize("architecture", ["sm_100", "sm_120"])
def test_what_is_nearest_to_spilling_does_not_on_later_cards(nvrtc, architecture):
    for entry in nvrtc.compile(source.attention_variant(128, torch.bfloat16), architecture):
        assert entry.spill_bytes + entry.stack_bytes == 0


def test_a_fault_in_the_text_is_found(nvrtc):
    """The gate is no rubber stamp: an unknown name does not compile, and too few registers are noticed."""

    class Broken(Variant):
        def text(self):
            return 'extern "C" __global__ void broken(float* x) { x[0] = INFINITY_OF_NOTHING; }'

    with pytest.raises(InternalError, match="does not compile"):
        nvrtc.compile(Broken("broken", (), (("broken", 1),)))

    class Spilling(Variant):
        def text(self):
            many = "".join(f"float v{i} = x[{i} * n];" for i in range(64))
            back = "".join(f"x[{i} * n + 1] = v{i};" for i in range(64))
            return (
                'extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float* x, int n) '
                f"{{ {many} __syncthreads(); {back} }}"
            )

    assert nvrtc.compile(Spilling("spilling", (), (("spilling", 1),)))[0].spill_bytes > 0


def test_what_there_is_no_kernel_for_is_refused():
    with pytest.raises(ModelError, match="head size 80"):
        source.attention_variant(80, torch.bfloat16)
    with pytest.raises(ModelError, match="float32"):
        source.layers_variant(torch.float32)
