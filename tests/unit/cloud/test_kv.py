"""KV memory: rows are stored where they belong, branches are moved, bytes are counted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outrider_cloud.kernels.kv import KvPool, slot_bytes
from outrider_cloud.kernels.layout import LayerSpec

# Two layers of different shape, as in models with local and global attention.
LAYERS = [LayerSpec(4, 2, 3, 5, 1.0, None, None, sinks=False), LayerSpec(4, 1, 6, 2, 1.0, 8, None, sinks=False)]
SLOTS = 12


def pool(dtype: torch.dtype = torch.float32) -> KvPool:
    """A pool whose slot s holds the number s everywhere."""
    made = KvPool(LAYERS, SLOTS, dtype)
    for part in (*made.keys, *made.values):
        part[...] += torch.arange(SLOTS, dtype=dtype)[None, :, None]
    return made


def contents(kv: KvPool) -> list[list[float]]:
    """Per tensor the number in each slot."""
    assert all(bool((part == part[:1, :, :1]).all()) for part in (*kv.keys, *kv.values))
    return [part[0, :, 0].tolist() for part in (*kv.keys, *kv.values)]


def test_a_new_pool_is_zero_and_shaped_by_each_layer():
    kv = KvPool(LAYERS, SLOTS, torch.float32)
    assert [tuple(k.shape) for k in kv.keys] == [(2, SLOTS, 3), (1, SLOTS, 6)]
    assert [tuple(v.shape) for v in kv.values] == [(2, SLOTS, 5), (1, SLOTS, 2)]
    assert not any(part.any() for part in (*kv.keys, *kv.values))


@pytest.mark.parametrize("layer", [0, 1])
def test_rows_go_to_their_slots_and_padding_goes_nowhere(layer: int):
    kv, spec = pool(), LAYERS[layer]
    key = torch.randn(spec.kv_heads, 5, spec.k_dim)
    value = torch.randn(spec.kv_heads, 5, spec.v_dim)
    before = [part.clone() for part in (*kv.keys, *kv.values)]
    slots = torch.tensor([7, 0, 4])
    kv.store(layer, slots, key, value)
    assert torch.equal(kv.keys[layer][:, slots], key[:, :3])
    assert torch.equal(kv.values[layer][:, slots], value[:, :3])
    others = [slot for slot in range(SLOTS) if slot not in {7, 0, 4}]
    for index, part in enumerate((*kv.keys, *kv.values)):
        touched = index in {layer, layer + len(LAYERS)}
        assert torch.equal(part[:, others], before[index][:, others])
        assert touched or torch.equal(part, before[index])


def test_rows_are_stored_in_the_pools_own_type():
    kv = pool(torch.bfloat16)
    key, value = torch.full((2, 1, 3), 1 / 3), torch.full((2, 1, 5), 2 / 3)
    kv.store(0, torch.tensor([3]), key, value)
    assert kv.keys[0][:, 3].eq(torch.tensor(1 / 3, dtype=torch.bfloat16)).all()


@given(st.permutations(range(SLOTS)), st.permutations(range(SLOTS)), st.integers(1, SLOTS))
def test_moves_read_everything_before_they_write(sources: list[int], targets: list[int], count: int):
    """A branch may move over itself: [5, 6] to [4, 5]."""
    kv = pool()
    kv.move(sources[:count], targets[:count])
    expected = list(map(float, range(SLOTS)))
    for source, target in zip(sources[:count], targets[:count], strict=True):
        expected[target] = float(source)
    assert contents(kv) == [expected] * 4


def test_bytes_of_a_slot_are_what_the_tensors_take():
    for dtype in (torch.float32, torch.bfloat16):
        kv = pool(dtype)
        taken = sum(part.numel() * part.element_size() for part in (*kv.keys, *kv.values))
        assert slot_bytes(LAYERS, dtype) * SLOTS == taken
