"""The sampling rule: each filter against its definition, numpy against torch, and what is chosen against softmax."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from outrider_cloud.kernels.sampling import CpuSampler, log_probabilities
from outrider_shared.sampling import SamplingParams, rule, rule_torch
from outrider_shared.sampling.noise import gumbel_rows

INF = math.inf
# Logits on a grid: ties are frequent, and different values stay different at every temperature.
GRID = st.lists(st.one_of(st.integers(-24, 24).map(lambda i: i / 4), st.just(-INF)), min_size=1, max_size=24)
TEMPERATURES = st.sampled_from([0.25, 0.5, 0.7, 1.0, 1.3, 2.0])
KS = st.one_of(st.just(0), st.integers(1, 26))
PS = st.one_of(st.just(1.0), st.floats(0.01, 0.999))
MINS = st.one_of(st.just(0.0), st.floats(0.001, 1.0))
PARAMS = st.builds(SamplingParams, TEMPERATURES, KS, PS, MINS, st.integers(0, 2**64 - 1))
NEAR = 1e-6


class BorderlineError(Exception):
    """Rounding decides what the definition leaves to real numbers."""


def keep_by_definition(logits: list[float], params: SamplingParams) -> list[bool]:
    """Which tokens the filters keep, one at a time, in float64, straight from the words of their definitions."""
    scores = [(z - max(logits)) / params.temperature for z in logits]
    kept = [s > -INF for s in scores]
    if params.top_k:
        kept = [k and sum(o > s for o in scores) < params.top_k for k, s in zip(kept, scores, strict=True)]
    if params.top_p < 1.0:
        mass = [math.exp(s) if k else 0.0 for s, k in zip(scores, kept, strict=True)]
        likelier = [math.fsum(m for m, o in zip(mass, scores, strict=True) if o > s) for s in scores]
        needed = params.top_p * math.fsum(mass)
        if any(abs(above - needed) < NEAR for above in likelier):
            raise BorderlineError
        kept = [k and above < needed for k, above in zip(kept, likelier, strict=True)]
    if params.min_p > 0.0:
        if any(abs(math.exp(s) - params.min_p) < NEAR for s in scores if s < 0.0):
            raise BorderlineError
        kept = [k and math.exp(s) >= params.min_p * (1 - NEAR) for k, s in zip(kept, scores, strict=True)]
    return kept


def kept_or_assume(logits: list[float], params: SamplingParams) -> list[bool]:
    assume(max(logits) > -INF)
    try:
        return keep_by_definition(logits, params)
    except BorderlineError:
        assume(condition=False)
        raise


@settings(max_examples=400)
@given(GRID, PARAMS)
@example([0.0, 0.0, 0.0, -1.0], SamplingParams(1.0, top_k=2))
@example([2.0, 1.0, 1.0, 0.0], SamplingParams(1.0, top_p=0.6))
def test_filters_keep_what_their_definitions_keep(logits: list[float], params: SamplingParams):
    expected = kept_or_assume(logits, params)
    row = np.array(logits, np.float32)
    scores = rule.filtered_scores(row, params)
    assert (scores > -np.inf).tolist() == expected
    torch_scores = rule_torch.filtered_scores(torch.from_numpy(row)[None], [params])[0]
    assert (torch_scores > -torch.inf).tolist() == expected


@given(GRID, PARAMS)
def test_kept_scores_are_logits_below_the_best_over_temperature(logits: list[float], params: SamplingParams):
    assume(max(logits) > -INF)
    scores = rule.filtered_scores(np.array(logits, np.float32), params)
    kept = scores > -np.inf
    expected = (np.array(logits) - max(logits)) / params.temperature
    np.testing.assert_allclose(scores[kept], expected[kept], rtol=1e-6)
    assert scores.max() == 0.0


@pytest.mark.parametrize(
    ("scores", "k", "kept"),
    [
        ([3, 2, 1, 0], 0, [1, 1, 1, 1]),
        ([3, 2, 1, 0], 1, [1, 0, 0, 0]),
        ([3, 2, 1, 0], 4, [1, 1, 1, 1]),
        ([3, 2, 1, 0], 99, [1, 1, 1, 1]),
        ([1, 2, 2, 2], 1, [0, 1, 1, 1]),
        ([3, 2, 2, 1], 2, [1, 1, 1, 0]),
        ([3, -INF, -INF, 1], 3, [1, 0, 0, 1]),
    ],
)
def test_top_k_keeps_all_ties_with_the_kth(scores: list[float], k: int, kept: list[int]):
    assert (rule.keep_top_k(np.array(scores, np.float32), k) > -np.inf).tolist() == [bool(x) for x in kept]


@pytest.mark.parametrize(
    ("probabilities", "p", "kept"),
    [
        ([0.5, 0.25, 0.125, 0.125], 1.0, [1, 1, 1, 1]),
        ([0.5, 0.25, 0.125, 0.125], 0.5, [1, 0, 0, 0]),  # reaches p exactly: enough
        ([0.5, 0.25, 0.125, 0.125], 0.51, [1, 1, 0, 0]),
        ([0.5, 0.25, 0.125, 0.125], 0.80, [1, 1, 1, 1]),  # both tied tokens, though one would do
        ([0.25, 0.25, 0.25, 0.25], 0.01, [1, 1, 1, 1]),
        ([0.1, 0.2, 0.7, 0.0], 0.01, [0, 0, 1, 0]),  # never empty
        ([0.1, 0.2, 0.7, 0.0], 0.75, [0, 1, 1, 0]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p_with_its_ties(
    probabilities: list[float], p: float, kept: list[int]
):
    with np.errstate(divide="ignore"):
        scores = np.log(np.array(probabilities, np.float32))
    expected = [bool(x) for x in kept]
    assert (rule.keep_top_p(scores, p) > -np.inf).tolist() == [
        k and q > 0 for k, q in zip(expected, probabilities, strict=True)
    ]


def test_top_p_is_satisfied_by_a_mass_of_exactly_p():
    scores = np.array([0.0, -1.0], np.float32)
    p = float(1.0 / (1.0 + np.exp(-1.0)))
    assert p * (1.0 + np.exp(-1.0)) == 1.0
    assert (rule.keep_top_p(scores, p) > -np.inf).tolist() == [True, False]
    assert (rule.keep_top_p(scores, float(np.nextafter(p, 1.0))) > -np.inf).tolist() == [True, True]


@pytest.mark.parametrize("min_p", [0.5, 0.25, 0.1, 0.05, 1.0])
def test_min_p_keeps_a_token_at_the_border(min_p: float):
    border = np.float32(np.log(np.float32(min_p)))
    scores = np.array([0.0, border, np.nextafter(border, np.float32(-9))], np.float32)
    assert (rule.keep_min_p(scores, float(np.float32(min_p))) > -np.inf).tolist() == [True, True, False]


def test_top_p_weighs_what_top_k_left():
    """Of 0.4, 0.3, 0.3 top-k 1 leaves the first alone; of 0.4, 0.35, 0.25 top-k 2 leaves 0.53 and 0.47."""
    logits = np.log(np.array([0.4, 0.35, 0.25], np.float32))
    assert (rule.filtered_scores(logits, SamplingParams(1.0, top_p=0.5)) > -np.inf).tolist() == [True, True, False]
    both = SamplingParams(1.0, top_k=2, top_p=0.5)
    assert (rule.filtered_scores(logits, both) > -np.inf).tolist() == [True, False, False]


def perturbed(logits: np.ndarray, position: int, params: SamplingParams) -> np.ndarray:
    return rule.filtered_scores(logits, params) + gumbel_rows([params.seed], [position], len(logits))[0]


def assert_same_choice(logits: np.ndarray, position: int, params: SamplingParams, one: int, other: int) -> None:
    """Equal, or so close that the last place of a logarithm decides."""
    if one != other:
        scores = logits if params.greedy else perturbed(logits, position, params)
        assert abs(float(scores[one]) - float(scores[other])) < 1e-5


@settings(max_examples=150)
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.one_of(PARAMS, st.just(SamplingParams())), st.integers(0, 2**20)), min_size=1, max_size=6),
    st.sampled_from([2, 5, 97, 331]),
)
def test_numpy_torch_and_the_engines_sampler_choose_the_same(numbers: int, asked: list, vocabulary: int):
    generator = np.random.default_rng(numbers)
    logits = (generator.standard_normal((len(asked), vocabulary)) * 3).astype(np.float32)
    params, positions = [p for p, _ in asked], [i for _, i in asked]
    in_torch = rule_torch.choose(torch.from_numpy(logits), positions, params).tolist()
    in_engine = CpuSampler().choose(torch.from_numpy(logits), positions, params)
    for row, (p, i) in enumerate(asked):
        in_numpy = rule.choose(logits[row], i, p)
        assert_same_choice(logits[row], i, p, in_numpy, in_torch[row])
        assert_same_choice(logits[row], i, p, in_numpy, in_engine[row])


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.lists(st.tuples(PARAMS, st.integers(0, 2**20)), min_size=1, max_size=4), st.data())
def test_noise_for_tokens_within_reach_chooses_as_noise_for_all(numbers: int, asked: list, data: st.DataObject):
    """In a large vocabulary, of any spread: a token without noise is one that no noise could have chosen."""
    spreads = data.draw(st.lists(st.sampled_from([0.1, 3.0, 9.0, 30.0]), min_size=len(asked), max_size=len(asked)))
    generator = np.random.default_rng(numbers)
    logits = (generator.standard_normal((len(asked), 9001)) * np.array(spreads)[:, None]).astype(np.float32)
    rows, params = torch.from_numpy(logits), [p for p, _ in asked]
    noise = gumbel_rows([p.seed for p in params], [i for _, i in asked], 9001)
    expected = np.argmax([rule.filtered_scores(*pair) for pair in zip(logits, params, strict=True)] + noise, -1)
    assert CpuSampler().choose(rows, [i for _, i in asked], params) == expected.tolist()


def test_the_most_noise_there_is_lifts_a_token_as_far_as_it_is_within_reach():
    """The token with the most noise of 64 positions, the likeliest but for it far ahead."""
    seed, vocabulary = 5, 12_000
    noise = gumbel_rows([seed] * 64, range(64), vocabulary)
    position, token = np.unravel_index(noise.argmax(), noise.shape)
    row = np.full(vocabulary, -1e4, np.float32)
    row[0] = 0.0
    for lead, expected in ((0.01, int(token)), (-0.01, 0)):
        row[token] = noise[position, 0] - noise[position, token] + lead
        chosen = CpuSampler().choose(torch.from_numpy(row)[None], [int(position)], [SamplingParams(1.0, seed=seed)])
        assert chosen == [expected]


def test_a_filter_of_one_row_does_not_touch_the_others():
    """Not even a token whose mass is lost in the rounding of the sum."""
    logits = torch.tensor([[0.0, -1.0, -60.0]]).repeat(4, 1)
    params = [SamplingParams(1.0), SamplingParams(1.0, top_p=0.5), SamplingParams(1.0, top_k=1)]
    kept = rule_torch.filtered_scores(logits, [*params, SamplingParams(1.0, min_p=0.3)]) > -torch.inf
    assert kept.tolist() == [[True, True, True], [True, False, False], [True, False, False], [True, True, False]]


def test_the_engines_sampler_does_not_touch_the_logits():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    CpuSampler().choose(logits, [1, 2, 3], [SamplingParams(1.0, seed=s) for s in range(3)])
    assert torch.equal(logits, before)


@given(GRID, st.integers(0, 2**20))
def test_greedy_takes_the_lowest_of_the_best_in_every_implementation(logits: list[float], position: int):
    assume(max(logits) > -INF)
    row, best = np.array(logits, np.float32), logits.index(max(logits))
    assert rule.choose(row, position, SamplingParams()) == best
    assert rule_torch.choose(torch.from_numpy(row)[None], [position], [SamplingParams()]).tolist() == [best]
    assert CpuSampler().choose(torch.from_numpy(row)[None], [position], [SamplingParams()]) == [best]


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy_among_the_best(temperature: float):
    logits = np.array([1.0, 3.0, 2.9, 3.0, -INF], np.float32)
    chosen = {rule.choose(logits, 5, SamplingParams(temperature, seed=seed)) for seed in range(60)}
    assert chosen == {1, 3}
    rows = torch.from_numpy(np.tile(logits, (60, 1)))
    params = [SamplingParams(temperature, seed=seed) for seed in range(60)]
    assert set(rule_torch.choose(rows, [5] * 60, params).tolist()) == {1, 3}


def test_the_hottest_temperature_is_nearly_uniform():
    logits = np.array([1.0, 0.0, -1.0, 0.5], np.float32)
    counts = np.bincount([rule.choose(logits, 1, SamplingParams(100.0, seed=s)) for s in range(2000)], minlength=4)
    assert stats.chisquare(counts).pvalue > 1e-4


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9),
    st.integers(0, 2**64 - 1),
    st.one_of(TEMPERATURES, st.just(1e-40)),
)
def test_extreme_logits_give_a_token_and_no_warning(logits: list[float], seed: int, temperature: float):
    row, params = np.array(logits, np.float32), SamplingParams(temperature, top_k=3, top_p=0.9, min_p=0.01, seed=seed)
    # What min-p leaves is within T * log(1 / 0.01) of the best.
    assert row[rule.choose(row, 3, params)] >= row.max() - 10
    assert row[rule_torch.choose(torch.from_numpy(row)[None], [3], [params]).item()] >= row.max() - 10


@given(st.lists(st.booleans(), min_size=2, max_size=12), PARAMS)
def test_impossible_tokens_are_never_chosen(possible: list[bool], params: SamplingParams):
    assume(any(possible))
    logits = np.where(possible, np.arange(len(possible)) % 3, -np.inf).astype(np.float32)
    assert possible[rule.choose(logits, 2, params)]
    assert possible[rule_torch.choose(torch.from_numpy(logits)[None], [2], [params]).item()]
    guess = rule.guess(logits, 2, params, 4)
    assert all(possible[token] for token in guess.tokens)


LOGITS = np.array([2.0, 1.5, 1.5, 0.7, 0.0, -0.4, -1.0, -1.2, -2.0, -3.0, -INF, 0.2], np.float32)
SAMPLED = [
    SamplingParams(1.0),
    SamplingParams(0.7),
    SamplingParams(1.3),
    SamplingParams(1.0, top_k=2),
    SamplingParams(0.9, top_p=0.8),
    SamplingParams(1.2, min_p=0.15),
    SamplingParams(1.3, top_k=8, top_p=0.9, min_p=0.1),
]


def expected_probabilities(params: SamplingParams) -> np.ndarray:
    kept = keep_by_definition(LOGITS.tolist(), params)
    weights = np.where(kept, np.exp(LOGITS.astype(np.float64) / params.temperature), 0.0)
    return weights / weights.sum()


def assert_distributed(chosen: list[int], params: SamplingParams) -> None:
    expected = expected_probabilities(params)
    counts = np.bincount(chosen, minlength=len(LOGITS))
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    assert stats.chisquare(counts[possible], expected[possible] * len(chosen)).pvalue > 1e-4


def seeded(params: SamplingParams, seed: int) -> SamplingParams:
    return SamplingParams(params.temperature, params.top_k, params.top_p, params.min_p, seed)


@pytest.mark.parametrize("params", SAMPLED, ids=str)
def test_over_seeds_choices_are_distributed_as_the_filtered_softmax(params: SamplingParams):
    assert_distributed([rule.choose(LOGITS, 17, seeded(params, seed)) for seed in range(5000)], params)


@pytest.mark.parametrize("params", SAMPLED, ids=str)
def test_over_seeds_choices_in_torch_are_distributed_as_the_filtered_softmax(params: SamplingParams):
    rows = torch.from_numpy(np.tile(LOGITS, (5000, 1)))
    chosen = rule_torch.choose(rows, [23] * 5000, [seeded(params, seed) for seed in range(5000)])
    assert_distributed(chosen.tolist(), params)


def test_over_positions_choices_are_distributed_and_independent():
    """A session's own tokens are independent draws: pairs of neighbours follow the product of the probabilities."""
    params = SamplingParams(1.0, top_k=3, seed=0xFEED)
    chosen = np.array([rule.choose(LOGITS, position, params) for position in range(6000)])
    assert_distributed(chosen.tolist(), params)
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (chosen[:-1], chosen[1:]), 1)
    assert stats.chi2_contingency(pairs).pvalue > 1e-4


@given(st.integers(0, 2**32), st.one_of(PARAMS, st.just(SamplingParams())), st.integers(1, 6), st.integers(0, 2**20))
def test_a_guess_lists_the_best_perturbed_scores_and_its_first_is_the_choice(
    numbers: int, params: SamplingParams, width: int, position: int
):
    logits = np.random.default_rng(numbers).standard_normal(60).astype(np.float32) * 2
    guess = rule.guess(logits, position, params, width)
    scores = logits if params.greedy else perturbed(logits, position, params)
    order = [v for v in np.argsort(-scores, kind="stable").tolist() if scores[v] > -np.inf]
    assert guess.tokens[0] == rule.choose(logits, position, params)
    assert guess.tokens == tuple(order[:width])
    assert guess.margins == tuple(float(scores[order[0]] - scores[v]) for v in order[:width])
    assert guess.margin == (float(scores[order[0]] - scores[order[1]]) if len(order) > 1 else INF)


def test_a_guess_of_one_possible_token_is_certain():
    guess = rule.guess(np.array([-INF, 2.0, -INF], np.float32), 4, SamplingParams(1.0, seed=1), 3)
    assert guess == rule.Guess((1,), (0.0,), INF)
    assert rule.guess(np.array([3.0], np.float32), 4, SamplingParams(), 2) == rule.Guess((0,), (0.0,), INF)


@pytest.mark.parametrize("params", [SamplingParams(1.0), SamplingParams(0.7, top_p=0.95), SamplingParams()], ids=str)
def test_with_a_large_vocabulary_a_guess_nearly_always_begins_with_the_choice(params: SamplingParams):
    generator, agreed = np.random.default_rng(3), 0
    for seed in range(100):
        # Zipf's law over 20,000 tokens, as language has it.
        logits = -1.3 * np.log(generator.permutation(20_000).astype(np.float32) + 1)
        p = seeded(params, seed)
        guess = rule.guess(logits, seed, p, 2)
        agreed += guess.tokens[0] == rule.choose(logits, seed, p)
        assert guess.margins[0] == 0.0 <= guess.margin
    assert agreed >= (100 if params.greedy or params.filtered else 85)


def test_log_probabilities_are_those_of_the_unfiltered_softmax():
    logits = np.random.default_rng(2).standard_normal((3, 40)).astype(np.float32)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    entries = log_probabilities(torch.from_numpy(logits), [4, 0, 39], top=5)
    for row, entry in enumerate(entries):
        ids, values = zip(*entry.top, strict=True)
        assert list(ids) == np.argsort(-logits[row])[:5].tolist()
        np.testing.assert_allclose(values, exact[row, list(ids)], atol=1e-6)
    got = [entry.logprob for entry in entries]
    np.testing.assert_allclose(got, exact[[0, 1, 2], [4, 0, 39]], atol=1e-6)
