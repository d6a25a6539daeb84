"""Whether a row's bits in the library's matrix products depend on its place and neighbours: what `--exact` rests on."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn.functional import linear

from outrider_cloud.bench.kernel_products import product_sizes

# How cuBLAS was set up (see run.py): findings are told by it.
WORKSPACE = os.environ.get("CUBLAS_WORKSPACE_CONFIG", "default")
PRODUCTS = ("qkv", "output", "gate and up", "down", "head")


def drawn(place, model, product):
    size_in, size_out = product_sizes(place.models[model])[product]
    generator = torch.Generator(place.device).manual_seed(1)
    weight = torch.empty(size_out, size_in, dtype=torch.bfloat16, device=place.device)
    return weight.normal_(0.0, 0.02, generator=generator), generator


def rows_of(count, width, place, generator):
    return torch.randn(count, width, generator=generator, device=place.device).bfloat16()


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("model", [0, 1])
def test_a_row_has_the_same_bits_at_every_place(place, findings, model, product):
    """One row at all places of a bucket, alone among random ones or together: every result is the same."""
    weight, generator = drawn(place, model, product)
    wrong = {}
    for bucket in place.buckets:
        row = rows_of(1, weight.shape[1], place, generator)
        together = linear(row.expand(bucket, -1).contiguous(), weight)
        places = int((together != together[:1]).any(-1).sum())
        among = 0
        for at in range(0, bucket, max(1, bucket // 8)):
            mixed = rows_of(bucket, weight.shape[1], place, generator) * 3
            mixed[at] = row[0]
            among += int(not torch.equal(linear(mixed, weight)[at], together[0]))
        wrong[bucket] = (places, among)
    findings[
        f"products/{WORKSPACE}/{place.models[model]}/{product}: places, neighbours that change bits, by bucket"
    ] = wrong
    assert all(counts == (0, 0) for counts in wrong.values()), wrong


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("model", [0, 1])
def test_permuted_rows_give_permuted_results(place, model, product):
    weight, generator = drawn(place, model, product)
    bucket = place.buckets[-1]
    x = rows_of(bucket, weight.shape[1], place, generator)
    order = torch.randperm(bucket, generator=generator, device=place.device)
    assert torch.equal(linear(x[order], weight), linear(x, weight)[order])


@pytest.mark.parametrize("model", [0, 1])
def test_which_buckets_agree_is_found_out(place, findings, model):
    """No demand: buckets that disagree are not used together. Told for the record."""
    told = {}
    for product in PRODUCTS:
        weight, generator = drawn(place, model, product)
        x = rows_of(place.buckets[-1], weight.shape[1], place, generator)
        whole = linear(x, weight)
        told[product] = [b for b in place.buckets if torch.equal(linear(x[:b].contiguous(), weight), whole[:b])]
    findings[f"products/{WORKSPACE}/{place.models[model]}: buckets with the bits of the largest"] = told
    assert all(agreeing[-1] == place.buckets[-1] for agreeing in told.values())
