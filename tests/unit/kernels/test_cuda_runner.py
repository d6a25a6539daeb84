"""The GPU's step, end to end on the CPU: our forward over Hugging Face weights, fixed buffers, the kernels' text."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from outrider_cloud.engine.batch import Batch
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.cuda_graphs import eagerly
from outrider_cloud.engine.cuda_runner import CudaRunner
from outrider_cloud.engine.engine import Engine
from outrider_cloud.engine.exactness import agreeing_buckets
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.engine.static import StaticArrays
from outrider_cloud.generate import generate
from outrider_cloud.kernels.cuda.platform import cuda_platform
from outrider_cloud.kernels.cuda.sampling import CudaSampler
from outrider_cloud.kernels.layers import TorchLayers
from outrider_cloud.kernels.layout import Segment
from outrider_cloud.kernels.platform import cpu_platform
from outrider_cloud.kernels.sampling import log_probabilities
from outrider_cloud.model.attention import ATTENTION
from outrider_cloud.model.decoder import Decoder, is_known
from outrider_cloud.model.probe import probe_layers
from outrider_shared.errors import ConfigError
from outrider_shared.sampling import SamplingParams
from outrider_shared.sampling.rule_torch import choose
from outrider_shared.sampling.shape_torch import Shaping, shape
from support.rig import Rig

COMMON = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 64, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**COMMON),
    "llama-3.1-rope": LlamaConfig(
        **COMMON,
        rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "qwen2-bias": Qwen2Config(**COMMON),
    "qwen3-tied": Qwen3Config(**COMMON, tie_word_embeddings=True),
    "mistral-window": MistralConfig(**COMMON, sliding_window=7),
}  # fmt: skip


def build(config, dtype):
    """A random model with our attention, biases included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=ATTENTION).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=0.0 if parameter.dim() > 1 else 1.0, std=0.15)
    model.requires_grad_(False)
    inverse = model.model.rotary_emb.inv_freq.clone()
    model = model.to(dtype)
    model.model.rotary_emb.inv_freq = inverse
    return model


def as_loaded(tiny, model, dtype):
    return replace(
        tiny, model=model, layers=probe_layers(model), dtype=dtype, vocabulary=96, context_length=256, eos=frozenset()
    )


def tree_batch(rng, slots):
    """A prompt of a session, and a tree of another whose context lies in earlier slots."""
    tree = [-1, 0, 1, 1, 2, 0]
    depths = [0, 1, 2, 2, 3, 1]
    segments = [
        Segment(np.zeros(0, np.int64), slots[:11], list(range(-1, 10))),
        Segment(np.zeros(0, np.int64), slots[32:38], tree),
    ]
    tokens = rng.integers(0, 96, 17).tolist()
    sampled = [10, 11, 12, 13, 14, 15, 16]
    return Batch(tokens, [*range(11), *depths], segments, sampled, [1] * 7, [SamplingParams()] * 7)


@pytest.mark.parametrize("name", CONFIGS)
def test_our_forward_is_the_models(name, tiny):
    """With the torch references, our forward over fused weights gives the logits of the model's own, and its tokens."""
    model = build(CONFIGS[name], torch.float32)
    loaded = as_loaded(tiny, model, torch.float32)
    platform = cpu_platform(exact=False)
    runner = ModelRunner(loaded, platform, EngineConfig(kv_tokens=64))
    batch = tree_batch(np.random.default_rng(1), np.arange(64))
    expected = runner.run(batch)
    assert is_known(model)
    decoder = Decoder(model, loaded.layers, TorchLayers())
    slots = torch.from_numpy(np.concatenate([s.slots for s in batch.segments]))
    ours = decoder(
        torch.tensor(batch.tokens), torch.tensor(batch.positions), slots, torch.tensor(batch.sampled), runner.kv,
        platform.attention.plan(batch.segments, 17),
    )  # fmt: skip
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))
    # The weights are shared: the model's own forward still gives the same.
    assert torch.allclose(runner.run(batch), expected, atol=1e-5)


def make_runner(host, tiny, name, **changes):
    loaded = as_loaded(tiny, build(CONFIGS[name], torch.bfloat16), torch.bfloat16)
    platform = cuda_platform(host, sampler=CudaSampler(host, ranks=2, threads=32))
    config = EngineConfig(**{"kv_tokens": 512, "row_budget": 16, "max_draft_rows": 8, **changes})
    return CudaRunner(loaded, platform, config, eagerly), config


@pytest.mark.parametrize("name", ["llama", "qwen3-tied", "mistral-window"])
def test_the_kernels_make_the_same_logits(host, tiny, name):
    """The whole step on the kernels differs from the torch references by bfloat16's rounding only."""
    runner, _ = make_runner(host, tiny, name, row_budget=32)
    batch = tree_batch(np.random.default_rng(2), np.arange(64))
    ours = runner.run(batch)
    reference = ModelRunner(runner.loaded, cpu_platform(exact=False), EngineConfig(kv_tokens=64)).run(batch)
    assert (ours.float() - reference.float()).abs().max() < 0.04 * reference.float().abs().max()


def test_a_model_that_we_have_no_forward_for_runs_through_its_own(host, tiny, monkeypatch):
    """Without our forward the same step calls the model, and gives the same logits to a rounding."""
    batch = tree_batch(np.random.default_rng(3), np.arange(64))
    ours = make_runner(host, tiny, "llama", row_budget=32)[0].run(batch)
    monkeypatch.setattr("outrider_cloud.engine.cuda_runner.is_known", lambda _: False)
    theirs = make_runner(host, tiny, "llama", row_budget=32)[0].run(batch)
    assert (ours.float() - theirs.float()).abs().max() < 0.04 * theirs.float().abs().max()


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, top_p=0.95, seed=5)])
def test_drafted_answers_are_plain_ones(host, tiny, params):
    """Trees whose right branch is never the first move KV behind the root, and commit what plain decoding commits."""
    runner, config = make_runner(host, tiny, "qwen3-tied", exact=True, buckets=(16,))
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = generate(Engine(runner, config), prompt, params, 12, ignore_eos=True).tokens
    rig = Rig(runner.loaded, kv_tokens=512)
    rig.engine = Engine(runner, config, lambda: rig.now)
    session = rig.open(prompt, 12, params, ignore_eos=True)
    while rig.engine.sessions[session].finish is None:
        done = len(rig.engine.sessions[session].log) - len(prompt)
        right = expected[done : done + 3]
        if len(right) == 3:
            wrong = [(token + 1) % 96 for token in right]
            tokens = [wrong[0], right[0], wrong[1], right[1], right[2]]
            rig.draft(session, tokens, parents=[0, 0, 1, 2, 1], anchor=len(prompt) + done)
        rig.engine.step()
    committed = rig.engine.sessions[session]
    assert committed.log[len(prompt) :] == expected
    assert committed.usage.steps <= 6
    rig.engine.pool.check()


def random_shaping(rng, rows):
    """Some rows with penalties, biases, forbidden ends and masks, others with none; tokens may have several of them."""
    shaping = Shaping()
    for row in range(rows):
        if rng.random() < 0.6:
            ids = rng.choice(96, 12, replace=False).astype(np.int64)
            counts = rng.integers(0, 3, 12).astype(np.float32)
            penalties = SamplingParams(repetition_penalty=1.4, frequency_penalty=0.3, presence_penalty=-0.2)
            shaping.penalties.append((row, ids, counts, penalties))
        if rng.random() < 0.6:
            tokens = rng.choice(96, 9, replace=False).tolist()
            shaping.biases.append((row, [(token, float(rng.uniform(-3, 3))) for token in tokens]))
            shaping.banned.append((row, [tokens[0], int(rng.integers(0, 96))]))
        if rng.random() < 0.5:
            shaping.masks.append((row, rng.integers(1, 1 << 32, 3, dtype=np.uint32)))
    return shaping


@pytest.mark.parametrize("seed", range(4))
def test_a_step_is_shaped_and_reports_log_probabilities(host, tiny, seed):
    """Against the torch references over the same logits; only rows that asked can be told of."""
    rng = np.random.default_rng(seed)
    runner, _ = make_runner(host, tiny, "llama", row_budget=32)
    batch = tree_batch(rng, np.arange(64))
    params = [SamplingParams(0.8 * (row % 3), top_k=30, seed=row) for row in range(7)]
    batch = replace(batch, params=params, reports={1: 3, 4: 0, 6: 2} if seed % 2 else {})
    logits, shaping = runner.run(batch).float(), random_shaping(rng, 7) if seed < 3 else None
    flight = runner.launch(batch)
    flight.choose(shaping)
    assert not flight.busy()
    decision = flight.wait()
    shaped = logits if shaping is None else shape(logits, shaping)
    assert decision.chosen == choose(shaped, batch.choosing, params).tolist()
    assert decision.bad == set()
    for row, top in batch.reports.items():
        (told,) = decision.logprobs([row], top)
        (expected,) = log_probabilities(logits[row : row + 1], [decision.chosen[row]], top)
        assert told.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert [token for token, _ in told.top] == [token for token, _ in expected.top]
    with pytest.raises(KeyError):
        decision.logprobs([0], 0)


def test_a_step_of_prompts_alone_chooses_nothing(host, tiny):
    runner, _ = make_runner(host, tiny, "llama", row_budget=32)
    batch = replace(tree_batch(np.random.default_rng(5), np.arange(64)), sampled=[], choosing=[], params=[])
    flight = runner.launch(batch)
    flight.choose(None)
    assert flight.wait().chosen == []


def test_log_probabilities_and_penalties_of_answers_are_those_of_the_references(host, tiny):
    """Whole answers through the engine: the reports of the kernels' steps against the torch platform's."""
    told = {}
    params = SamplingParams(temperature=0.7, seed=4, repetition_penalty=1.2, logit_bias=((7, 2.0),))
    for name in ("kernels", "torch"):
        runner, config = make_runner(host, tiny, "llama", exact=True, buckets=(16,))
        if name == "torch":
            runner = ModelRunner(runner.loaded, cpu_platform(exact=True), config)
        rig = Rig(runner.loaded, kv_tokens=512)
        rig.engine = Engine(runner, config)
        session = rig.open([3, 1, 4], 6, params, ignore_eos=True, logprobs=True, top_logprobs=2)
        rig.run()
        told[name] = [report for commit in rig.commits(session) for report in commit.logprobs]
    assert len(told["kernels"]) == len(told["torch"]) == 6
    first, reference = told["kernels"][0], told["torch"][0]
    assert first.logprob == pytest.approx(reference.logprob, abs=0.1)
    assert [round(value, 1) for _, value in first.top] == pytest.approx([v for _, v in reference.top], abs=0.2)


def test_exact_buckets_are_found_on_the_kernels(host, tiny):
    """Rows do not depend on what surrounds them: the check before serving passes."""
    runner, _ = make_runner(host, tiny, "llama", exact=True, buckets=(4, 8))
    assert agreeing_buckets(runner)[-1] == 8


def test_a_block_is_a_page(host, tiny):
    with pytest.raises(ConfigError, match="block of 32"):
        make_runner(host, tiny, "llama", block_size=32)


def test_every_bucket_is_captured_before_the_first_step(host, tiny):
    """The largest first, over padding alone: what a session finds later is what it would have found without."""
    captured = []

    def capture(compute):
        captured.append(compute().shape[0])
        return compute

    ours, config = make_runner(host, tiny, "llama", row_budget=32)
    loaded = ours.loaded
    platform = cuda_platform(host, sampler=CudaSampler(host, ranks=2, threads=32))
    prepared = CudaRunner(loaded, platform, config, capture)
    prepared.prepare()
    assert captured == [32, 16, 8]
    batch = tree_batch(np.random.default_rng(5), np.arange(64))
    assert torch.equal(prepared.run(batch), ours.run(batch))
    assert captured == [32, 16, 8]


def test_moves_of_all_sessions_are_one_launch_before_the_next_step(host, tiny):
    """Each in order; a long list, as a rank that follows gets it, is done all the same."""
    runner, _ = make_runner(host, tiny, "llama", row_budget=16)
    runner.kv.pool.normal_()
    before = runner.kv.pool.transpose(3, 4).flatten(2, 3).clone()  # [layers, 2, slots, heads, dim]
    launched, launch_moves = [], runner.kv.launch_moves
    runner.kv.launch_moves = lambda *given: (launched.append(given[3]), launch_moves(*given))
    runner.move([50, 52], [49, 50])
    runner.move([71], [70])
    assert launched == []
    runner.run(one_row())
    assert launched == [2]
    expected = before.clone()
    expected[:, :, [49, 50, 70]] = before[:, :, [50, 52, 71]]
    kept = [slot for slot in range(before.shape[2]) if slot != 5]
    assert torch.equal(runner.kv.pool.transpose(3, 4).flatten(2, 3)[:, :, kept], expected[:, :, kept])
    runner.move(list(range(101, 141)), list(range(100, 140)))
    runner.move([20], [19])
    for _ in range(20):
        runner.move([20], [19])
    runner.run(one_row())
    assert launched == [2, 1, 16, 5]


def one_row():
    """A step of one row, whose KV goes to slot 5."""
    segment = Segment(np.zeros(0, np.int64), np.array([5]), [-1])
    return Batch([3], [0], [segment], [0], [1], [SamplingParams()])


def test_static_arrays_hold_what_was_written_last():
    """A shorter write leaves nothing of a longer one before it; large arrays copy what is used."""
    arrays = StaticArrays({"few": 5, "many": 40000, "more": 3}, torch.device("cpu"))
    arrays.write("few", [1, 2, 3, 4, 5])
    arrays.write("many", list(range(1000)))
    arrays.upload()
    arrays.write("few", [7], fill=-1)
    arrays.write("many", [9, 9])
    arrays.upload()
    assert arrays["few"].tolist() == [7, -1, -1, -1, -1]
    assert arrays["many"][:4].tolist() == [9, 9, 2, 3]
    assert arrays["more"].tolist() == [0, 0, 0]
    with pytest.raises(AssertionError, match="holds 3"):
        arrays.write("more", [1, 2, 3, 4])


def test_a_step_waits_for_the_copies_of_the_one_before(monkeypatch):
    """Memory that a copy may still read is not written: on a card the next write waits for the last upload."""
    arrays = StaticArrays({"few": 5}, torch.device("cpu"))
    waited = []
    arrays._copied = type("Event", (), {"synchronize": lambda _: waited.append(True)})()
    arrays.write("few", [1])
    arrays.write("few", [2])
    assert waited == [True]


def test_the_check_lays_sessions_into_blocks_of_their_own(host, tiny):
    """Kernels find a session's keys through pages, so every session of the check begins with a page."""
    runner, _ = make_runner(host, tiny, "llama", exact=True, buckets=(4, 8))
    seen = []
    run = runner.run
    runner.run = lambda batch, bucket=0: seen.extend(batch.segments) or run(batch, bucket)
    agreeing_buckets(runner)
    starts = {int(np.concatenate((s.context, s.slots))[0]) for s in seen}
    assert len(starts) == 4
    assert all(start % 16 == 0 for start in starts)
