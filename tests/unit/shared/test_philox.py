"""The noise: Random123's vectors, equality of the two generators, and the distribution of what is made from them."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from outrider_shared.sampling import philox, philox_torch

SEEDS = st.integers(0, 2**64 - 1)
POSITIONS = st.integers(0, 2**31 - 1)

# Random123, kat_vectors: philox4x32 10 (counter, key, result).
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
LARGE_VOCABULARY = 150_000


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_numpy_generator_gives_the_published_vectors(counter: list[int], key: list[int], expected: list[int]):
    assert philox.philox4x32(np.array([counter], np.uint32), (key[0], key[1])).tolist() == [expected]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_torch_generator_gives_the_published_vectors(counter: list[int], key: list[int], expected: list[int]):
    assert philox_torch.philox4x32(torch.tensor(counter), torch.tensor(key)).tolist() == expected


@given(st.integers(1, 9), SEEDS, st.randoms(use_true_random=False))
def test_both_generators_give_the_same_bits(rows: int, seed: int, words: random.Random):
    counter = np.array([[words.getrandbits(32) for _ in range(4)] for _ in range(rows)], np.uint32)
    ours = philox.philox4x32(counter, philox.split_seed(seed))
    theirs = philox_torch.philox4x32(torch.from_numpy(counter.astype(np.int64)), torch.tensor(philox.split_seed(seed)))
    assert ours.tolist() == theirs.tolist()


@given(SEEDS)
def test_the_two_words_of_a_seed_are_its_low_and_high_half(seed: int):
    low, high = philox.split_seed(seed)
    assert 0 <= low < 2**32
    assert 0 <= high < 2**32
    assert high << 32 | low == seed


@given(SEEDS, POSITIONS, st.integers(1, 70))
def test_the_bits_of_a_token_are_the_word_of_its_group_of_four(seed: int, position: int, vocabulary: int):
    """x = Philox(key = seed, counter = (v // 4, position, 0, 0))[v % 4], for every token id v on its own."""
    bits = philox.random_bits(seed, position, np.arange(vocabulary))
    for token in range(vocabulary):
        counter = np.array([[token // 4, position, 0, 0]], np.uint32)
        assert bits[token] == philox.philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))[0, token % 4]


@given(SEEDS, POSITIONS, st.integers(1, 300), st.randoms(use_true_random=False))
def test_a_row_holds_the_noise_of_each_token(seed: int, position: int, vocabulary: int, some: random.Random):
    row = philox.gumbel_row(seed, position, vocabulary)
    tokens = np.array(some.sample(range(vocabulary), min(vocabulary, 9)), np.int64)
    assert row.shape == (vocabulary,)
    assert row.dtype == np.float32
    assert (row[tokens] == philox.gumbel_from_bits(philox.random_bits(seed, position, tokens))).all()


@given(st.lists(st.tuples(SEEDS, POSITIONS), min_size=1, max_size=5), st.integers(1, 300))
def test_torch_rows_are_the_numpy_rows_up_to_the_last_places(pairs: list[tuple[int, int]], vocabulary: int):
    rows = philox_torch.gumbel_rows([seed for seed, _ in pairs], [position for _, position in pairs], vocabulary)
    expected = np.stack([philox.gumbel_row(seed, position, vocabulary) for seed, position in pairs])
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows.numpy(), expected, rtol=2e-6, atol=2e-6)


@given(SEEDS, POSITIONS)
def test_a_remembered_row_is_the_same_row_and_cannot_be_written(seed: int, position: int):
    row = philox.cached_gumbel_row(seed, position, 64)
    assert (row == philox.gumbel_row(seed, position, 64)).all()
    with pytest.raises(ValueError, match="read-only"):
        row[0] = 0.0


def test_noise_depends_on_all_bits_of_the_seed_and_on_the_position():
    base = philox.gumbel_row(5, 9, 64)
    others = [philox.gumbel_row(5 ^ (1 << bit), 9, 64) for bit in range(64)] + [philox.gumbel_row(5, 10, 64)]
    assert all((row == base).mean() < 0.1 for row in others)


def test_the_ends_of_the_bit_range_give_finite_noise_in_order():
    """The smallest bits win, the largest lose, and none is infinite (E = 0 or w = 1 would be)."""
    bits = np.array([0, 1, 2, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    noise = philox.gumbel_from_bits(bits)
    assert np.isfinite(noise).all()
    assert (np.diff(noise[:4]) < 0).all()
    assert noise[3] > noise[4] >= noise[5]
    assert noise[0] == pytest.approx(-np.log(0.5 * 2.0**-32), rel=1e-6)


def test_noise_is_minus_the_logarithm_of_an_exponential():
    bits = np.random.default_rng(1).integers(0, 2**32, 5000, dtype=np.uint32)
    w = np.minimum((bits.astype(np.float64) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    np.testing.assert_allclose(philox.gumbel_from_bits(bits), -np.log(-np.log1p(-w)), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 12345])
def test_noise_is_gumbel_distributed(seed: int):
    noise = np.concatenate([philox.gumbel_row(seed, position, 5000) for position in range(8)])
    assert stats.kstest(noise, "gumbel_r").pvalue > 1e-3


def test_neighbouring_positions_and_seeds_are_not_correlated():
    rows = [philox.gumbel_row(seed, position, 20000) for seed in (1, 2) for position in (1, 2)]
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
        tied += _ties_at_the_top(philox.gumbel_from_bits(bits))
        u = np.minimum((bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32), np.float32(1 - 2.0**-24))
        usual_tied += _ties_at_the_top(-np.log(-np.log(u)))
    assert tied == 0
    assert usual_tied > 0
