"""What a machine without a fitting GPU is told: one sentence with what to do, no traceback. The CPU goes on."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig

from outrider_cloud.build import build_engine
from outrider_cloud.cli import cloud
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.kernels.cuda import gpu
from outrider_cloud.kernels.cuda.fit import check_fit
from outrider_cloud.kernels.cuda.sampling import share_of
from outrider_cloud.kernels.cuda.source import HEAD_SIZES, RANKS, THREADS, attention_bytes
from outrider_cloud.kernels.layout import LayerSpec
from outrider_cloud.model import loading, reading
from outrider_cloud.model.outline import outline
from outrider_cloud.parallel.world import World
from outrider_shared.errors import ConfigError, ModelError

CUDA = torch.device("cuda")
HOPPER = 227 << 10
SHAPE = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip


@pytest.fixture
def card(monkeypatch):
    """A machine that claims cards of a chosen capability and memory; nothing here touches them."""

    def claim(capability=(9, 0), count=1, free=79 << 30, shared=232448):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: device.index + 0)  # as torch, no card unnamed
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 << 30))
        properties = SimpleNamespace(multi_processor_count=132, shared_memory_per_block_optin=shared)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(gpu, "_cupy", lambda: None)

    return claim


@pytest.fixture
def folder(tmp_path):
    """Writes a model folder without weights: what must be refused before they are read needs none."""

    def write(config):
        config.save_pretrained(tmp_path)
        Tokenizer(WordLevel({"a": 0}, "a")).save(str(tmp_path / "tokenizer.json"))
        return str(tmp_path)

    return write


def told(*arguments):
    """What the command says as it refuses: the line on standard error, and the same as JSON."""
    done = CliRunner().invoke(cloud, list(arguments))
    assert isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.stderr
    line = done.stderr.strip()
    assert line.count("\n") == 0
    assert line.startswith("outrider: ")
    if "--json" in arguments:
        error = json.loads(done.stdout)["error"]
        assert error["message"] in line
        assert error["hint"]
    return done.exit_code, line


def on_gpu(*more):
    return told("generate", "--device", "cuda", "--prompt", "a", "--json", *more)


def test_a_torch_without_cuda_is_told(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    status, line = on_gpu()
    assert status == 2
    assert "is built without CUDA" in line
    assert "or serve with --device cpu" in line


def test_no_driver(card):
    card(count=0)
    assert "no NVIDIA driver answers" in on_gpu()[1]
    with pytest.raises(ConfigError, match=r"no NVIDIA driver answers.*nvidia-smi"):
        gpu.check_gpu(CUDA)


def test_an_older_card(card):
    card((8, 0))
    with pytest.raises(ConfigError, match=r"A100 has compute capability 8.0.*9.0 or newer"):
        gpu.check_gpu(CUDA)


def test_a_card_that_is_not_there(card):
    card()
    with pytest.raises(ConfigError, match="cuda:3 was asked for, but there are 1 cards"):
        gpu.check_gpu(torch.device("cuda:3"))


def test_cupy_missing(card, monkeypatch):
    real = gpu._cupy
    card()
    monkeypatch.setattr(gpu, "_cupy", real)

    def missing(_):
        raise ImportError("No module named 'cupy'")

    monkeypatch.setattr(gpu.importlib, "import_module", missing)
    status, line = on_gpu()
    assert status == 2
    assert "the GPU kernels need CuPy, which cannot be imported: No module named 'cupy'" in line
    assert "pip install 'outrider[gpu]'" in line


def test_more_ranks_than_cards_are_refused_before_any_is_started(card):
    card(count=2)
    serve = ("serve", "--listen", "127.0.0.1:0", "--tensor-parallel", "4", "--device")
    assert "--tensor-parallel 4 takes 4 cards, here are 2" in told(*serve, "cuda")[1]
    assert "--device cuda:1 is one card, --tensor-parallel 4 takes 4" in told(*serve, "cuda:1")[1]


def test_a_head_size_without_kernels_is_refused_before_weights_are_read(card, folder):
    card()
    status, line = on_gpu("--model", folder(LlamaConfig(**SHAPE, head_dim=80)))
    assert status == 1
    assert (
        "the GPU kernels have no head size 80 (they have 64, 96, 128, 256; serve this model with --device cpu)" in line
    )


def test_other_shapes_and_types_without_kernels(card, folder):
    card()
    wide = LlamaConfig(**{**SHAPE, "vocab_size": 2 * 10**6}, head_dim=64)
    assert "a vocabulary of 2000000 does not fit the sampling kernel" in on_gpu("--model", folder(wide))[1]
    fine = folder(LlamaConfig(**SHAPE, head_dim=64))
    assert "do not compute in float32" in on_gpu("--model", fine, "--dtype", "float32")[1]
    spec = LayerSpec(4, 2, 64, 64, 1.0, None, None, sinks=False)
    with pytest.raises(ModelError, match=r"key heads have size 128, its value heads 64.*--device cpu"):
        check_fit([LayerSpec(4, 2, 128, 64, 1.0, None, None, sinks=False)], 96, torch.bfloat16, HOPPER)
    with pytest.raises(ModelError, match="KV heads differ"):
        check_fit([spec, LayerSpec(4, 4, 64, 64, 1.0, None, None, sinks=False)], 96, torch.bfloat16, HOPPER)
    check_fit([spec], 152_000, torch.float16, HOPPER)


@pytest.mark.parametrize("kib", [227, 163, 99])
def test_the_sampling_kernel_takes_what_a_card_has_room_for(kib):
    """Whatever it takes fits, twice onto a Hopper's multiprocessor, with full lists for vocabularies of today."""
    for vocabulary in (96, 128_256, 151_936, 262_144):
        for ranks in RANKS:
            share = share_of(vocabulary, ranks, THREADS, kib << 10)
            assert share.shared_bytes <= kib << 10
            assert share.span * ranks >= vocabulary
            assert share.room >= 600
            if kib == 227:
                assert 2 * (share.shared_bytes + 1024) <= 228 << 10
    assert all(attention_bytes(head) <= 48 << 10 for head in HEAD_SIZES)  # a card gives that unasked


def test_a_vocabulary_that_no_block_of_the_card_holds_is_refused_at_load(card, folder):
    """Before weights are read, with what a block would need."""
    card((12, 0), shared=8 << 10)
    wide = LlamaConfig(**{**SHAPE, "vocab_size": 32_000}, head_dim=64)
    status, line = on_gpu("--model", folder(wide))
    assert status == 1
    assert "a vocabulary of 32000 does not fit the sampling kernel: a block needs 9216 bytes" in line
    assert "here it gets 8192" in line


def test_attention_that_a_card_has_no_room_for_is_refused():
    spec = LayerSpec(4, 2, 128, 128, 1.0, None, None, sinks=False)
    with pytest.raises(ModelError, match=r"heads of 128 needs 9472 bytes of shared memory a block, here it gets 8192"):
        check_fit([spec], 96, torch.bfloat16, 8192)


def test_a_card_too_small_for_weights_and_kv_is_told_before_anything_is_read(card, folder, monkeypatch):
    """The message has the size of both, so that the reader knows which one to make smaller."""
    small = LlamaConfig(**SHAPE, head_dim=64)
    path = folder(small)
    loading.AutoModelForCausalLM.from_config(small).to(torch.bfloat16).save_pretrained(path)
    monkeypatch.setattr(reading, "_read", lambda *_, **__: pytest.fail("a weight was read"))
    card(free=16 << 20)
    status, line = on_gpu("--model", path, "--kv-tokens", "131072")
    assert status == 2
    assert "GiB of weights and 0.12 GiB of KV, NVIDIA A100 has 0.02 of 80.00 GiB free" in line
    assert "--kv-tokens" in line
    card(free=1 << 10)
    assert "of weights and" in on_gpu("--model", path)[1]
    assert "or --weights int8 or fp8" in on_gpu("--model", path)[1]
    # What is asked for already is not advised, and the room for products is told.
    monkeypatch.setattr(loading, "check_product", lambda *_: None)
    line = on_gpu("--model", path, "--weights", "fp8")[1]
    assert re.search(r"GiB of weights in fp8, \d\.\d\d GiB for the largest matrix as it is multiplied and", line)
    assert "--weights" not in line


def test_memory_that_ends_while_weights_are_read(card, folder, monkeypatch):
    small = LlamaConfig(**SHAPE, head_dim=64)
    path = folder(small)
    loading.AutoModelForCausalLM.from_config(small).to(torch.bfloat16).save_pretrained(path)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(reading, "_read", full)
    card()
    status, line = on_gpu("--model", path)
    assert status == 2
    assert "does not fit onto cuda:0: CUDA out of memory" in line
    assert "a larger card" in line


@pytest.mark.parametrize("where", ["made", "captured"])
def test_memory_that_ends_behind_the_weights(card, tiny, monkeypatch, where):
    """KV memory, the buffers of a step and graphs take theirs at load, too, and are told apart from the weights."""

    class Full:
        def __init__(self, *_):
            if where == "made":
                self.prepare()

        def prepare(self):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    card()
    monkeypatch.setattr("outrider_cloud.build.check_fit", lambda *_: None)
    monkeypatch.setattr("outrider_cloud.build.GpuLauncher", lambda device: device)
    monkeypatch.setattr("outrider_cloud.build.cuda_platform", lambda *_: None)
    monkeypatch.setattr("outrider_cloud.build.CudaRunner", Full)
    with pytest.raises(ConfigError, match=r"buffers of a step of tiny do not fit.*--row-budget"):
        build_engine(tiny, EngineConfig(kv_tokens=256), device="cuda")


def test_kernels_that_cupy_cannot_compile(card, monkeypatch):
    """A driver that does not fit to CuPy shows at the first kernel; it is told with what to try."""

    class Module:
        def __init__(self, **_):
            pass

        def get_function(self, _):
            raise RuntimeError("libnvrtc.so.13: cannot open shared object file")

    card()
    monkeypatch.setattr(gpu, "_cupy", lambda: type("CuPy", (), {"RawModule": Module}))
    launcher = gpu.GpuLauncher(CUDA)
    from outrider_cloud.kernels.cuda.source import kv_variant

    with pytest.raises(ConfigError, match=r"cannot compile the kernels of kv here: libnvrtc.*kernels check"):
        launcher._kernel(kv_variant(torch.bfloat16), "kv_move")


def test_the_outline_knows_the_layers_and_their_memory(tiny_folder, tiny):
    """Without weights the layers are those that the loaded model shows; a rank's KV is its share of the heads."""
    planned = outline(tiny_folder)
    assert planned is not None
    assert planned.layers == tiny.layers
    assert planned.vocabulary == tiny.vocabulary
    whole = planned.kv_bytes(64, torch.bfloat16, World())
    assert whole == sum(s.kv_heads * 2 * s.k_dim for s in tiny.layers) * 64 * 2
    assert planned.kv_bytes(64, torch.bfloat16, World(0, 2, 2)) == whole // 2
    heads = tiny.layers[0].kv_heads
    assert planned.kv_bytes(64, torch.bfloat16, World(0, 1, 2 * heads)) == 2 * whole  # a copy for every shard
    assert planned.kv_bytes(64, torch.bfloat16, World(0, 2 * heads, 2 * heads)) == whole // heads


def test_devices_and_types_that_make_no_sense(tiny):
    for device in ("tpu", "meta", "cuda:x"):
        with pytest.raises(ConfigError, match="cpu, cuda or cuda:N"):
            build_engine(tiny, EngineConfig(kv_tokens=256), device=device)
