"""The random bits: Random123's vectors, equality of the two generators, and what a token's bits depend on."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
