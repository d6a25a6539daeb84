"""Whole steps at the layers' real sizes: graphs, exact rows, and answers that drafts do not change."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from outrider_cloud.bench.shapes import random_model
from outrider_cloud.engine.batch import Batch
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.cuda_graphs import eagerly
from outrider_cloud.engine.cuda_runner import CudaRunner
from outrider_cloud.engine.exactness import agreeing_buckets
from outrider_cloud.kernels.cuda.platform import cuda_platform
from outrider_cloud.kernels.cuda.sampling import CudaSampler
from outrider_cloud.kernels.layout import Segment
from outrider_shared.ids import SessionId
from outrider_shared.sampling import SamplingParams

TREE = [-1, 0, 1, 1, 2, 0, 5, 4]
DEPTHS = [0, 1, 2, 2, 3, 1, 2, 4]


@functools.cache
def model(name, device, layers):
    """A few layers of full width: what makes a step exact or not is in each of them."""
    return random_model(name, torch.bfloat16, device, layers)


def make_runner(place, number, capture=None, **config):
    loaded = model(place.models[number], place.device, place.layers)
    sampler = None if place.on_card else CudaSampler(place.launcher, ranks=2, threads=64)
    sizes = EngineConfig(**{"kv_tokens": 4096, "max_draft_rows": 8, "row_budget": place.buckets[-1], **config})
    capture = capture or (None if place.on_card else eagerly)
    return CudaRunner(loaded, cuda_platform(place.launcher, sampler=sampler), sizes, capture), sizes


def segment_of(first, computed, rows, parents=None):
    """Rows of a session whose slots begin at a page."""
    slots = np.arange(first, first + computed + rows)
    return Segment(slots[:computed], slots[computed:], parents or list(range(-1, rows - 1)))


def batch_of(*parts):
    """(tokens, positions, segment) each; every row chooses."""
    tokens = [token for part in parts for token in part[0]]
    positions = [position for part in parts for position in part[1]]
    params = [SamplingParams()] * len(tokens)
    every = list(range(len(tokens)))
    return Batch(tokens, positions, [part[2] for part in parts], every, [p + 1 for p in positions], params)


def prefill(runner, prompt, first, bucket):
    for start in range(0, len(prompt), bucket):
        part = prompt[start : start + bucket]
        runner.run(batch_of((part, range(start, start + len(part)), segment_of(first, start, len(part)))), bucket)


@pytest.mark.parametrize("number", [0, 1])
def test_a_graph_gives_what_computing_gives(place, number):
    """Bit for bit: replaying records what would have been computed."""
    prompt = np.random.default_rng(1).integers(5, 500, place.buckets[0]).tolist()
    batch = batch_of((prompt, range(len(prompt)), segment_of(0, 0, len(prompt))))
    captured, _ = make_runner(place, number)
    plain, _ = make_runner(place, number, eagerly)
    assert torch.equal(captured.run(batch), plain.run(batch))
    assert torch.equal(captured.run(batch), plain.run(batch))


@pytest.mark.parametrize("number", [0, 1])
def test_tree_rows_have_the_bits_of_plain_decoding(place, number):
    """Every row of a tree beside another session, against its path decoded one token a step, alone."""
    bucket = place.buckets[-1]
    runner, _ = make_runner(place, number, exact=True, buckets=(bucket,))
    rng = np.random.default_rng(2)
    prompt = rng.integers(5, 500, 300 if place.on_card else 20).tolist()
    tokens, length = rng.integers(5, 500, len(TREE)).tolist(), len(prompt)
    prefill(runner, prompt, 0, bucket)
    other = rng.integers(5, 500, 3).tolist()
    tree = (tokens, [length + d for d in DEPTHS], segment_of(0, length, len(TREE), TREE))
    drafted = runner.run(batch_of((other, range(3), segment_of(2048, 0, 3)), tree), bucket)[3:]
    for row in (7, 3, 6):
        path, at = [], row
        while at >= 0:
            path.append(at)
            at = TREE[at]
        prefill(runner, prompt, 1024, bucket)
        for depth, node in enumerate(path[::-1]):
            place_in_log = length + depth
            step = ([tokens[node]], [place_in_log], segment_of(1024, place_in_log, 1))
            plain = runner.run(batch_of(step), bucket)
        assert torch.equal(plain[0], drafted[row])


@pytest.mark.parametrize("number", [0, 1])
def test_exact_buckets_are_found(place, findings, number):
    """The check before serving passes with one bucket at least, and tells which of several agree."""
    runner, _ = make_runner(place, number, exact=True, buckets=place.buckets)
    agreeing = agreeing_buckets(runner)
    findings[f"steps/{place.models[number]}: buckets that agree"] = agreeing
    assert agreeing[-1] == place.buckets[-1]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, top_p=0.95, seed=5)])
def test_drafted_answers_are_plain_ones(place, number, params):
    """Trees whose right branch is never the first: KV is moved, and the answer is that of plain decoding."""
    pytest.importorskip("google.protobuf", reason="the engine reads drafts as protobuf")
    from outrider_cloud.engine.engine import Engine
    from outrider_cloud.generate import generate
    from support.drafted import drafted_by_trees

    runner, config = make_runner(place, number, exact=True, buckets=place.buckets[-1:])
    prompt = np.random.default_rng(3).integers(5, 500, 20).tolist()
    expected = generate(Engine(runner, config), prompt, params, 24, ignore_eos=True).tokens
    tokens, steps = drafted_by_trees(Engine(runner, config), prompt, params, expected)
    assert tokens == expected
    assert steps < 12


def test_a_draft_on_the_card_guesses_beside_a_step_what_it_guesses_alone(card):
    """From another thread, on a stream of its own."""
    build = pytest.importorskip("outrider_cloud.drafts.build")
    drafts = pytest.importorskip("outrider_cloud.drafts.model")
    runner, sizes = make_runner(card, 0)
    draft = build.build_draft(runner.loaded, runner.loaded, sizes, runner.platform)
    ask = drafts.Ask(SessionId("a"), list(range(20, 40)), [], SamplingParams(0.8, seed=3))
    draft.guess([ask], 1)  # reads the text
    expected = draft.guess([ask], 1)
    batch = batch_of((list(range(30, 46)), range(16), segment_of(0, 0, 16)))
    alone = runner.launch(batch)
    alone.choose(None)
    chosen = alone.wait().chosen
    with ThreadPoolExecutor(1) as other:
        for _ in range(20):
            flight = runner.launch(batch)
            task = other.submit(draft.guess, [ask], 1)
            flight.choose(None)
            assert task.result() == expected
            assert flight.wait().chosen == chosen
