"""The noise: that it has the same bits however it is drawn, and the distribution that it must have."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from outrider_shared.sampling import philox, philox_torch
from outrider_shared.sampling.noise import (
    HIGHEST,
    LOWEST,
    NoiseRows,
    gumbel_from_bits,
    gumbel_of,
    gumbel_rows,
    noise_rows,
)

SEEDS = st.integers(0, 2**64 - 1)
POSITIONS = st.integers(0, 2**31 - 1)
PAIRS = st.tuples(SEEDS, POSITIONS)
LARGE_VOCABULARY = 150_000


def gumbel_row(seed: int, position: int, vocabulary: int) -> np.ndarray:
    return gumbel_rows([seed], [position], vocabulary)[0]


@given(st.lists(PAIRS, min_size=1, max_size=9), st.sampled_from([1, 3, 64, 1030, 4096, 33_001, 70_002]), st.data())
def test_rows_drawn_together_are_the_noise_of_each_token_alone(
    pairs: list[tuple[int, int]], vocabulary: int, data: st.DataObject
):
    """Across the parts that they are drawn in, too."""
    rows = gumbel_rows([seed for seed, _ in pairs], [position for _, position in pairs], vocabulary)
    assert rows.shape == (len(pairs), vocabulary)
    assert rows.dtype == np.float32
    for (seed, position), row in zip(pairs, rows, strict=True):
        token = data.draw(st.integers(0, vocabulary - 1))
        x = philox.random_bits(seed, position, np.array([token]))
        assert row[token] == gumbel_from_bits(x)[0]


@given(st.lists(PAIRS, min_size=1, max_size=9), st.integers(1, 5000))
def test_noise_of_chosen_tokens_of_several_positions_is_that_of_their_rows(
    pairs: list[tuple[int, int]], vocabulary: int
):
    seeds, positions = np.array([s for s, _ in pairs], np.uint64), np.array([p for _, p in pairs])
    tokens = np.arange(len(pairs)) * 977 % vocabulary
    rows = gumbel_rows([s for s, _ in pairs], positions.tolist(), vocabulary)
    assert gumbel_of(seeds, positions, tokens).tolist() == rows[np.arange(len(pairs)), tokens].tolist()


@given(st.lists(st.lists(st.tuples(st.sampled_from([0, 7, 2**64 - 1]), st.integers(0, 40)), max_size=9), max_size=9))
def test_remembered_rows_are_the_same_rows_whatever_was_asked_before(asked: list[list[tuple[int, int]]]):
    """Drawn ahead for the positions after, drawn with others, or asked for again."""
    rows = NoiseRows(40)
    for wanted in asked:
        for (seed, position), row in zip(wanted, rows(wanted), strict=True):
            assert (row == gumbel_row(seed, position, 40)).all()


def test_remembered_rows_cannot_be_written():
    (row,) = noise_rows(64)([(1, 2)])
    with pytest.raises(ValueError, match="read-only"):
        row[0] = 0.0


def test_more_rows_may_be_asked_for_than_are_remembered():
    pairs = [(3, position) for position in range(600)]
    assert all((row == gumbel_row(*pair, 8)).all() for pair, row in zip(pairs, NoiseRows(8)(pairs), strict=True))


def test_several_threads_may_ask_at_once():
    rows = NoiseRows(256)

    def ask(start: int) -> bool:
        pairs = [(start % 2, position) for position in range(start, start + 700)]
        return all((rows([pair])[0] == gumbel_row(*pair, 256)).all() for pair in pairs[::7])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(8)))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=99))
def test_no_noise_is_above_the_most_or_below_the_least(bits: list[int]):
    noise = gumbel_from_bits(np.array(bits, np.uint32))
    assert LOWEST <= noise.min() <= noise.max() <= HIGHEST


@given(SEEDS, POSITIONS, st.integers(1, 300), st.randoms(use_true_random=False))
def test_a_row_holds_the_noise_of_each_token(seed: int, position: int, vocabulary: int, some: random.Random):
    row = gumbel_row(seed, position, vocabulary)
    tokens = np.array(some.sample(range(vocabulary), min(vocabulary, 9)), np.int64)
    assert row.shape == (vocabulary,)
    assert row.dtype == np.float32
    assert (row[tokens] == gumbel_of(seed, position, tokens)).all()


@given(st.lists(st.tuples(SEEDS, POSITIONS), min_size=1, max_size=5), st.integers(1, 300))
def test_torch_rows_are_the_numpy_rows_up_to_the_last_places(pairs: list[tuple[int, int]], vocabulary: int):
    rows = philox_torch.gumbel_rows([seed for seed, _ in pairs], [position for _, position in pairs], vocabulary)
    expected = gumbel_rows([seed for seed, _ in pairs], [position for _, position in pairs], vocabulary)
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows.numpy(), expected, rtol=2e-6, atol=2e-6)


def test_noise_depends_on_all_bits_of_the_seed_and_on_the_position():
    base = gumbel_row(5, 9, 64)
    others = [gumbel_row(5 ^ (1 << bit), 9, 64) for bit in range(64)] + [gumbel_row(5, 10, 64)]
    assert all((row == base).mean() < 0.1 for row in others)


def test_the_ends_of_the_bit_range_give_finite_noise_in_order():
    """The smallest bits win, the largest lose, and none is infinite (E = 0 or w = 1 would be)."""
    bits = np.array([0, 1, 2, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    noise = gumbel_from_bits(bits)
    assert np.isfinite(noise).all()
    assert (np.diff(noise[:4]) < 0).all()
    assert noise[3] > noise[4] >= noise[5]
    assert noise[0] == pytest.approx(-np.log(0.5 * 2.0**-32), rel=1e-6)


def test_noise_is_minus_the_logarithm_of_an_exponential():
    bits = np.random.default_rng(1).integers(0, 2**32, 5000, dtype=np.uint32)
    w = np.minimum((bits.astype(np.float64) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    np.testing.assert_allclose(gumbel_from_bits(bits), -np.log(-np.log1p(-w)), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 12345])
def test_noise_is_gumbel_distributed(seed: int):
    noise = np.concatenate([gumbel_row(seed, position, 5000) for position in range(8)])
    assert stats.kstest(noise, "gumbel_r").pvalue > 1e-3


def test_neighbouring_positions_and_seeds_are_not_correlated():
    rows = [gumbel_row(seed, position, 20000) for seed in (1, 2) for position in (1, 2)]
    between = np.corrcoef(rows)[np.triu_indices(4, 1)]
    assert np.abs(between).max() < 0.03


def _ties_at_the_top(noise: np.ndarray, among: int = 4) -> bool:
    top = np.partition(noise, len(noise) - among)[-among:]
    return len(np.unique(top)) < among


def test_no_ties_at_the_top_of_a_large_vocabulary():
    """Two tokens never share the best noise of a position, where the textbook formula in float32 lets them."""
    tied = usual_tied = 0
    for pair in range(240):
        counter = np.zeros((LARGE_VOCABULARY // 4, 4), np.uint32)
        counter[:, 0], counter[:, 1] = np.arange(len(counter)), pair * 7
        bits = philox.philox4x32(counter, philox.split_seed(pair * 0x9E3779B97F4A7C15 % 2**64)).reshape(-1)
        tied += _ties_at_the_top(gumbel_from_bits(bits))
        u = np.minimum((bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32), np.float32(1 - 2.0**-24))
        usual_tied += _ties_at_the_top(-np.log(-np.log(u)))
    assert tied == 0
    assert usual_tied > 0
