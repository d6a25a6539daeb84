"""Weights read one by one: the very model that transformers reads, whole, cut or quantised, in the memory it holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from outrider_cloud.model.attention import ATTENTION
from outrider_cloud.model.reading import needed_bytes, read_weights, skeleton
from outrider_cloud.model.weights import Weights, quantise
from outrider_cloud.parallel.shards import shard
from outrider_cloud.parallel.world import World
from outrider_shared.errors import ModelError
from support.families import SERVED

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
CPU = torch.device("cpu")
# Their files hold experts one by one, which transformers puts together on reading.
CONVERTED = {"qwen3-moe", "deepseek-v3"}


def written(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    """A random model of a family, in several files, biases and norms random, too."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(SERVED[name](), dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder


def whole(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """As transformers reads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=ATTENTION).eval()


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, by all of its names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))


def assert_alike(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """The same names, dtypes and bits, the same ties, nothing without memory."""
    left, right = tensors(ours), tensors(theirs)
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        assert left[name].dtype == tensor.dtype, name
        assert torch.equal(left[name], tensor), name
    same = [{n for n in side if side[n] is side[name]} for side in (left, right) for name in sorted(side)]
    assert same[: len(left)] == same[len(left) :]


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_is_read_one_by_one_is_what_transformers_reads(tmp_path: Path, name: str, dtype: torch.dtype):
    folder = written(tmp_path, name, torch.bfloat16)
    model = skeleton(AutoConfig.from_pretrained(folder), dtype)
    assert all(parameter.is_meta for parameter in model.parameters())
    read = read_weights(model, folder, weights=Weights.NATIVE, device=CPU, world=None)
    assert read is (name not in CONVERTED)
    if read:
        assert_alike(model, whole(folder, dtype))


@pytest.mark.parametrize("world", [World(shards=2), World(1, 2, 2)], ids=["all shards", "one of two ranks"])
@pytest.mark.parametrize("weights", Weights)
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_cut_and_quantised_on_the_way_gives_the_bits_of_cut_and_quantised_afterwards(tmp_path, name, weights, world):
    """`qwen2` has biases, and a head that is tied where it is not cut."""
    folder = written(tmp_path, name)
    expected = whole(folder, torch.float32)
    shard(expected, world)
    quantise(expected, weights)
    model = skeleton(AutoConfig.from_pretrained(folder), torch.float32)
    assert read_weights(model, folder, weights=weights, device=CPU, world=world)
    assert_alike(model, expected)


@pytest.mark.parametrize("weights", Weights)
def test_the_memory_that_is_asked_for_is_what_the_model_takes(tmp_path: Path, weights: Weights):
    """But for the scales of integers, which are a few bytes per row."""
    model = whole(written(tmp_path, "llama"), torch.float32)
    needed = needed_bytes(model, weights)
    quantise(model, weights)
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    scales = sum(b.numel() * b.element_size() for n, b in model.named_buffers() if n.endswith("scale"))
    assert needed == held - scales


def test_a_file_that_is_cut_short_is_named(tmp_path: Path):
    folder = written(tmp_path, "llama")
    file = sorted(folder.glob("model-*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    model = skeleton(AutoConfig.from_pretrained(folder), torch.float32)
    with pytest.raises(ModelError, match=file.name):
        read_weights(model, folder, weights=Weights.NATIVE, device=CPU, world=None)


def test_an_index_that_is_none_is_named(tmp_path: Path):
    folder = written(tmp_path, "llama")
    (folder / "model.safetensors.index.json").write_text("[]")
    model = skeleton(AutoConfig.from_pretrained(folder), torch.float32)
    with pytest.raises(ModelError, match=r"index\.json"):
        read_weights(model, folder, weights=Weights.NATIVE, device=CPU, world=None)


PEAK = """
import json, resource, sys, torch
from transformers import AutoConfig
from outrider_cloud.model.reading import needed_bytes, read_weights, skeleton
from outrider_cloud.model.weights import Weights
from outrider_cloud.parallel.world import World
from pathlib import Path
folder, weights, ranks = Path(sys.argv[1]), Weights(sys.argv[2]), int(sys.argv[3])
model = skeleton(AutoConfig.from_pretrained(folder), torch.bfloat16)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
world = World(0, ranks, ranks) if ranks > 1 else None
read_weights(model, folder, weights=weights, device=torch.device("cpu"), world=world)
held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
print(json.dumps({"grown": peak() - before, "held": held}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """256 MB of weights in files of 16 MB."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=2048, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=8
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="16MB")
    return folder


@pytest.mark.parametrize(("weights", "ranks"), [("native", 1), ("int8", 1), ("fp8", 1), ("native", 2)])
def test_reading_takes_no_more_memory_than_what_is_held_and_a_file(large: Path, weights: str, ranks: int):
    """By the kernel's count in a process of its own, mapped pages of files included."""
    command = [sys.executable, "-c", PEAK, str(large), weights, str(ranks)]
    told = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=ENVIRONMENT).stdout
    )
    size = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    assert told["held"] > size / 2.2
    # One file, and what the allocator keeps.
    assert told["grown"] < told["held"] + 50e6
