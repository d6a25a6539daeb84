"""Which models are served, which are refused and why, and that the conformance check can tell them apart."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers.models.llama import modeling_llama

from outrider_cloud.kernels.layout import LayerSpec, Segment
from outrider_cloud.kernels.platform import Platform, cpu_platform
from outrider_cloud.model import conformance, gate, probe
from outrider_cloud.model.attention import ATTENTION, ShapeRecorder, record_shape, tree_attention
from outrider_cloud.model.loading import fingerprint, load_model
from outrider_shared.errors import ConfigError, ModelError
from support.families import COMMON, SERVED
from support.models import TINY_CONTEXT, TINY_EOS, TINY_VOCABULARY, loaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PretrainedConfig

NO_KV = {"vocab_size": 331, "hidden_size": 64, "num_hidden_layers": 2}
REFUSED: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "llama4": (
        lambda: hf.Llama4TextConfig(
            **COMMON, head_dim=16, num_local_experts=2, intermediate_size_mlp=96, attention_chunk_size=16
        ),
        "chunked attention",
    ),
    "mamba": (lambda: hf.MambaConfig(**NO_KV), "a state that is not KV"),
    "mamba2": (lambda: hf.Mamba2Config(**NO_KV, num_heads=4, head_dim=32), "a state that is not KV"),
    "qwen3-next": (lambda: hf.Qwen3NextConfig(**COMMON), "linear_attention"),
    "bloom": (
        lambda: hf.BloomConfig(vocab_size=331, hidden_size=64, n_layer=2, n_head=4),
        "BloomForCausalLM does not route its attention",
    ),
    "dynamic-rope": (
        lambda: hf.LlamaConfig(**COMMON, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        r"rotary embedding \(dynamic\)",
    ),
    "encoder-only": (hf.ViTConfig, "no causal language model"),
}


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("exact", [False, True], ids=["grouped", "exact"])
def test_a_served_model_computes_what_eager_computes(name: str, exact: bool):
    assert conformance.check(SERVED[name](), cpu_platform(exact=exact)) < 5e-6


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_served_is_refused_with_its_cause(name: str):
    config, cause = REFUSED[name]
    with pytest.raises(ModelError, match=cause) as refused:
        conformance.check(config())
    assert str(refused.value).startswith(config().model_type)
    with pytest.raises(ModelError, match=cause):
        gate.check(config())


def test_the_check_works_on_a_small_clone_and_leaves_the_configuration_alone():
    config = hf.Gemma3TextConfig(
        **{**COMMON, "num_hidden_layers": 26, "vocab_size": 5000, "eos_token_id": 4999}, sliding_window=512
    )
    before = config.to_dict()
    clone = conformance.small_clone(config)
    assert config.to_dict() == before
    assert clone.num_hidden_layers == len(clone.layer_types) == 2
    assert set(clone.layer_types) == {"sliding_attention", "full_attention"}
    assert (clone.sliding_window, clone.vocab_size, clone.eos_token_id) == (7, 384, 0)
    assert (clone.hidden_size, clone.num_attention_heads) == (config.hidden_size, config.num_attention_heads)


# ---- models that pass the gate and compute something else ----------------------------------------------------------


def add_distance(module: Any, query: Any, key: Any, value: Any, *_: Any, scaling: float, **__: Any) -> Any:
    """Eager attention with a penalty on distance, which reaches no other attention function."""
    key = key.repeat_interleave(module.num_key_value_groups, 1)
    value = value.repeat_interleave(module.num_key_value_groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    length = scores.shape[-1]
    scores = scores - 0.05 * (torch.arange(length)[:, None] - torch.arange(length)).abs()
    scores = scores + torch.full((length, length), -1e9).triu(1)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def stretch_rope(forward: Any) -> Any:
    def stretched(self: Any, x: torch.Tensor, position_ids: torch.Tensor, **kw: Any) -> Any:
        return forward(self, x, position_ids * (1 + position_ids.amax() / 100), **kw)

    return stretched


def mix_rows(forward: Any) -> Any:
    def mixed(self: Any, x: torch.Tensor) -> torch.Tensor:
        out = forward(self, x)
        return out + 0.1 * out.roll(1, 1)

    return mixed


def not_a_number(forward: Any) -> Any:
    def broken(self: Any, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x) * torch.nan

    return broken


def no_forward(_: Any) -> Any:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel for that")

    return fails


def twist(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, change: Any) -> None:
    monkeypatch.setattr(owner, name, change(getattr(owner, name)) if isinstance(owner, type) else change)


TWISTS = {
    "a bias inside eager attention": (modeling_llama, "eager_attention_forward", add_distance),
    "a rotary embedding that depends on the batch": (modeling_llama.LlamaRotaryEmbedding, "forward", stretch_rope),
    "rows mixed outside of attention": (modeling_llama.LlamaMLP, "forward", mix_rows),
    "logits that are not numbers": (modeling_llama.LlamaMLP, "forward", not_a_number),
}


@pytest.mark.parametrize("kind", TWISTS)
def test_a_model_that_passes_the_gate_and_computes_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str
):
    twist(monkeypatch, *TWISTS[kind])
    gate.check(SERVED["llama"]())
    with pytest.raises(ModelError, match="logits differ from eager") as refused:
        conformance.check(SERVED["llama"]())
    assert refused.value.hint


def test_a_model_that_cannot_run_is_refused_and_not_a_crash(monkeypatch: pytest.MonkeyPatch):
    twist(monkeypatch, modeling_llama.LlamaMLP, "forward", no_forward)
    with pytest.raises(ModelError, match="its clone failed: no kernel for that"):
        conformance.check(SERVED["llama"]())


class TwistedAttention:
    """The grouped reference with one thing wrong."""

    def __init__(
        self, spec: Callable[[LayerSpec], LayerSpec], segment: Callable[[Segment], Segment], sinks: bool
    ) -> None:
        self._spec, self._segment, self._sinks = spec, segment, sinks

    def plan(self, segments: list[Segment], rows: int) -> Any:
        inner = cpu_platform(exact=False).attention.plan([self._segment(s) for s in segments], rows)
        outer = self

        class Plan:
            def attend(self, query: Any, kv: Any, layer: int, spec: LayerSpec, sinks: Any) -> Any:
                return inner.attend(query, kv, layer, outer._spec(spec), sinks if outer._sinks else None)

        return Plan()


def platform(
    spec: Callable[[LayerSpec], LayerSpec] = lambda s: s,
    segment: Callable[[Segment], Segment] = lambda s: s,
    *,
    sinks: bool = True,
) -> Platform:
    return dataclasses.replace(cpu_platform(exact=False), attention=TwistedAttention(spec, segment, sinks))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("llama", platform(lambda s: dataclasses.replace(s, scale=s.scale * 1.02))),
        ("mistral-window", platform(lambda s: dataclasses.replace(s, window=8))),
        ("mistral-window", platform(lambda s: dataclasses.replace(s, window=6))),
        ("gemma2", platform(lambda s: dataclasses.replace(s, window=None))),
        ("gemma2", platform(lambda s: dataclasses.replace(s, softcap=None))),
        ("gpt-oss", platform(sinks=False)),
        ("llama", platform(segment=lambda s: dataclasses.replace(s, parents=list(range(-1, len(s.parents) - 1))))),
        ("llama", platform(segment=lambda s: dataclasses.replace(s, context=s.context[::-1][:-1]))),
    ],
    ids=["scale", "window+1", "window-1", "no window", "no softcap", "no sinks", "tree as chain", "a token missing"],
)
def test_the_check_sees_attention_that_is_a_little_wrong(name: str, wrong: Platform):
    assert conformance.check(SERVED[name](), platform()) < conformance.TOLERANCE
    with pytest.raises(ModelError, match="logits differ from eager"):
        conformance.check(SERVED[name](), wrong)


# ---- the shape probe -----------------------------------------------------------------------------------------------


def probed(name: str) -> list[LayerSpec]:
    model = hf.AutoModelForCausalLM.from_config(SERVED[name](), attn_implementation=ATTENTION)
    layers = probe.probe_layers(model)
    assert model.config._attn_implementation == ATTENTION
    return layers


def test_shapes_are_read_off_the_running_model():
    assert probed("llama") == [LayerSpec(4, 2, 16, 16, 0.25, None, None, sinks=False)] * 4
    assert [layer.window for layer in probed("gemma3")] == [7, 7, 7, 7, 7, None, 7]
    assert {layer.softcap for layer in probed("gemma2")} == {50.0}
    assert {layer.scale for layer in probed("granite")} == {0.1}
    assert {layer.sinks for layer in probed("gpt-oss")} == {True}
    deepseek = probed("deepseek-v3")[0]
    assert (deepseek.q_heads, deepseek.kv_heads, deepseek.k_dim, deepseek.v_dim) == (4, 4, 16, 16)


def record(**given: Any) -> None:
    module = torch.nn.Module()
    module.layer_idx = 0
    rows = torch.zeros(1, 2, 1, 4)
    arguments = {"attention_mask": None, "outrider": ShapeRecorder(), **given}
    record_shape(module, rows, rows, rows, **arguments)


def test_an_unknown_keyword_to_attention_is_refused_by_name():
    record(is_causal=True, cache_position=torch.zeros(1), no_such_thing=None)
    with pytest.raises(ModelError, match="hands its attention alibi_slopes"):
        record(alibi_slopes=torch.ones(2))
    with pytest.raises(ModelError, match="a mask of its own"):
        record(attention_mask=torch.zeros(1, 1, 1, 1))
    with pytest.raises(ModelError, match="drops extra keywords"):
        record(outrider=None)


def test_attention_without_a_step_is_refused():
    rows = torch.zeros(1, 2, 1, 4)
    with pytest.raises(ModelError, match="did not pass the step"):
        tree_attention(torch.nn.Module(), rows, rows, rows, None)


def test_a_layer_that_does_not_call_attention_once_is_refused(monkeypatch: pytest.MonkeyPatch):
    def twice(forward: Any) -> Any:
        def both(self: Any, *args: Any, **kwargs: Any) -> Any:
            forward(self, *args, **kwargs)
            return forward(self, *args, **kwargs)

        return both

    twist(monkeypatch, modeling_llama.LlamaAttention, "forward", twice)
    with pytest.raises(ModelError, match="8 attention calls"):
        probed("llama")


# ---- loading -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be spoilt."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def test_a_folder_is_loaded_with_what_the_service_tells_of_it(tiny_folder: Path):
    model = loaded(tiny_folder)
    assert (model.vocabulary, model.context_length, model.eos) == (TINY_VOCABULARY, TINY_CONTEXT, {TINY_EOS})
    assert model.name == tiny_folder.name
    assert len(model.layers) == 2
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert not model.model.training
    assert len(bytes.fromhex(model.fingerprint)) == len(bytes.fromhex(model.tokenizer_sha256)) == 32


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return spoil


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None  # type: ignore[return-value]


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def without_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_a_wrong_shape(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_a_larger_tokenizer(folder: Path) -> None:
    words = {chr(0x4E00 + i): i for i in range(TINY_VOCABULARY + 1)}
    Tokenizer(BPE(words, [])).save(str(folder / "tokenizer.json"))


SPOILT: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "no config": (remove("config.json"), ConfigError, "has no config.json"),
    "no tokenizer": (remove("tokenizer.json"), ConfigError, "has no tokenizer.json"),
    "config is no JSON": (write("config.json", "{"), ModelError, "cannot be read"),
    "config of no model": (write("config.json", "{}"), ModelError, "cannot be read"),
    "no weights": (remove("model.safetensors"), ModelError, "cannot be read"),
    "weights cut": (cut("model.safetensors", 0.6), ModelError, "cannot be read"),
    "weights empty": (cut("model.safetensors", 0), ModelError, "cannot be read"),
    "weights are text": (write("model.safetensors", "not weights at all"), ModelError, "cannot be read"),
    "a tensor missing": (without_a_tensor, ModelError, "up_proj"),
    "a tensor of another shape": (with_a_wrong_shape, ModelError, "cannot be read"),
    "tokenizer is no JSON": (write("tokenizer.json", "{"), ModelError, "cannot be read"),
    "tokenizer is no text": (lambda f: (f / "tokenizer.json").write_bytes(b"\xff\xfe") and None, ModelError, "read"),
    "tokenizer of another model": (with_a_larger_tokenizer, ConfigError, "98 tokens, the model 97"),
    "generation config is no JSON": (write("generation_config.json", "{"), ModelError, "cannot be read"),
    "tokenizer config is no JSON": (write("tokenizer_config.json", "{"), ModelError, "cannot be read"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_damaged_folder_is_refused_by_a_typed_error(folder: Path, kind: str):
    spoil, error, words = SPOILT[kind]
    spoil(folder)
    with pytest.raises(error, match=words) as refused:
        load_model(folder)
    assert str(folder) in str(refused.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="has no config"):
        load_model(tmp_path / "nowhere")


def test_a_model_that_cannot_be_served_is_refused_before_its_weights_are_read(folder: Path):
    hf.MambaConfig(**NO_KV).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="a state that is not KV"):
        load_model(folder)


def test_loading_checks_conformance_unless_told_otherwise(folder: Path, monkeypatch: pytest.MonkeyPatch):
    twist(monkeypatch, modeling_llama.LlamaMLP, "forward", mix_rows)
    with pytest.raises(ModelError, match="logits differ"):
        load_model(folder)
    assert load_model(folder, check=False).vocabulary == TINY_VOCABULARY


@pytest.mark.parametrize(
    ("value", "eos"), [(7, {7}), ([7, 9], {7, 9}), (None, {TINY_EOS}), ([7, TINY_VOCABULARY, -1], {7})]
)
def test_end_tokens_of_the_generation_config_override_the_models(folder: Path, value: Any, eos: set[int]):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert load_model(folder, check=False).eos == eos


def test_the_chat_template_is_found_in_either_place(folder: Path):
    assert load_model(folder, check=False).chat_template == ""
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    assert load_model(folder, check=False).chat_template == "old"
    (folder / "chat_template.jinja").write_text("new")
    assert load_model(folder, check=False).chat_template == "new"


def test_the_fingerprint_names_configuration_and_weights_and_nothing_else(folder: Path):
    before = fingerprint(folder)
    (folder / "README.md").write_text("words")
    assert fingerprint(folder) == before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    other = fingerprint(folder)
    assert other != before
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert len({before, other, fingerprint(folder)}) == 3
