"""Distances between distributions, and the one that decides: the chance of a refused draft under shared noise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outrider_cloud.train.distil.divergences import DIVERGENCES, buckets, coupling, stored_loss, variation
from outrider_cloud.train.texts.batches import Batch
from outrider_shared.sampling.philox_torch import gumbel_rows
from unit.train.toys import toy_model

WEIGHTS = st.lists(st.floats(0.01, 10), min_size=5, max_size=5)


def distribution(weights: list[float]) -> torch.Tensor:
    values = torch.tensor([weights], dtype=torch.float64)
    return (values / values.sum()).float()


@given(WEIGHTS, WEIGHTS)
def test_the_coupling_lies_between_the_bounds_of_total_variation(a: list[float], b: list[float]):
    p, q = distribution(a), distribution(b)
    tv, lost = float(variation(p, q)), float(coupling(p, q))
    assert tv - 1e-5 <= lost <= 1 - (1 - tv) / (1 + tv) + 1e-5


def test_the_coupling_is_the_share_of_unequal_choices_under_the_products_noise():
    p, q = distribution([5, 2, 1, 1, 0.5]), distribution([2, 4, 1, 0.2, 1])
    noise = gumbel_rows([7] * 40_000, list(range(40_000)), 5)
    unequal = ((p.log() + noise).argmax(-1) != (q.log() + noise).argmax(-1)).float().mean()
    assert float(coupling(p, q)) == pytest.approx(float(unequal), abs=0.01)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_is_nothing_between_equals_and_falls_along_its_gradient(name: str):
    measure = DIVERGENCES[name]
    p = distribution([5, 2, 1, 1, 0.5])
    assert float(measure(p, p)) == pytest.approx(0, abs=1e-5)
    logits = torch.zeros(1, 5, requires_grad=True)
    before = measure(p, logits.softmax(-1)).sum()
    before.backward()
    after = measure(p, (logits - 0.2 * logits.grad / logits.grad.norm()).softmax(-1)).sum()
    assert float(after.detach()) < float(before.detach())


def test_what_the_teacher_did_not_store_is_one_bucket():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]]))
    top_ids, top_logs = torch.tensor([[1, 0]]), torch.log(torch.tensor([[0.6, 0.3]]))
    p, q = buckets(Batch(torch.zeros(1, 2), torch.ones(1, 2), top_ids, top_logs), logits)
    assert np.allclose(p, [[0.6, 0.3, 0.1]])
    assert np.allclose(q, [[0.25, 0.5, 0.25]])


def test_a_loss_over_stored_tokens_is_that_of_the_definition():
    model = toy_model(0).eval()
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    weight = torch.zeros(2, 9)
    weight[0, 3] = weight[1, 5:] = 1
    values, tokens = torch.randn(5, 300, generator=torch.Generator().manual_seed(2)).log_softmax(-1).topk(300)
    batch = Batch(ids, weight, tokens, values)
    found = float(stored_loss("forward-kl")(model, batch).detach())
    logs = model(ids).logits.detach().log_softmax(-1)
    q = torch.stack([logs[0, 2], *logs[1, 4:8]]).gather(-1, tokens)
    assert found == pytest.approx(float((values.exp() * (values - q)).sum(-1).mean()), rel=0.02)  # bfloat16 passes
