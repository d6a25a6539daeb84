"""What the draft model has read: any path is found again, and the guesses are those of a drafter that reads it anew."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_shared.drafting import drafter as module
from outrider_shared.drafting.drafter import ModelDrafter
from outrider_shared.drafting.held import Held
from outrider_shared.drafting.runtime import DraftModel
from outrider_shared.packs import bundled_pack
from outrider_shared.sampling import SamplingParams

PATHS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=20)


@given(PATHS, st.integers(0, 30))
def test_the_longest_prefix_that_was_read_is_found_with_its_own_path(paths, keep_at):
    """Against a plain dictionary from prefix to slots; after `keep` only the kept path is left."""
    held, slots, tokens = Held(), [], []
    for number, path in enumerate(paths):
        slot, depth = held.find(path)
        assert tokens[slot] == tuple(path[:depth]) if depth else slot == -1
        assert tuple(path[: depth + 1]) not in tokens or depth == len(path)
        if number == keep_at and depth:
            base, kept = held.keep(slot, path[:depth])
            slots = [*range(base), *kept]
            tokens = [tokens[s] for s in slots]
            assert tokens == [tuple(path[: i + 1]) for i in range(depth)]
            slot = depth - 1
        if slot < 0:
            held, tokens = Held(), []
        held.append(slot, path[depth:])
        tokens += [tuple(path[: i + 1]) for i in range(depth, len(path))]
        assert len(held) == len(tokens)


@pytest.fixture(scope="module")
def model():
    return DraftModel.load(bundled_pack())


@pytest.mark.parametrize("spare", [0, 3, 96])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_on_branches_are_those_of_a_drafter_that_reads_every_path_anew(model, monkeypatch, spare, temperature):
    """Branches are left and taken up again in any order, with room for many of them in the cache or for none."""
    monkeypatch.setattr(module, "_MOST_SPARE", spare)
    draw, params = random.Random(spare), SamplingParams(temperature, seed=7)
    ours, paths = ModelDrafter(model.new_runtime(64)), [[5, 9, 300, 12, 77, 8]]
    for _ in range(60):
        path = draw.choice(paths[-6:])
        told = ours.propose(path, params, 3)
        anew = ModelDrafter(model.new_runtime(64)).propose(path, params, 3)
        # The pack's activations are quantised together, so logits differ a little by what shares a pass.
        assert told.margin == pytest.approx(anew.margin, abs=0.25)
        assert told.tokens[0] == anew.tokens[0] or told.margin < 0.25
        paths += [[*path, token] for token in told.tokens[:2] if len(path) < 60]
