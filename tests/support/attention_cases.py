"""Sessions with random queries, keys and values for the attention kernel, and what float64 makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from outrider_cloud.kernels.cuda.attention import CudaAttention
from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.layout import LayerSpec, Segment

PAGE_BITS = 4
SLOTS = 1024


@dataclass
class Case:
    """One session: its context, a tree of rows, and random queries, keys and values per token."""

    segment: Segment
    query: torch.Tensor  # [rows, q_heads, dim]
    key: torch.Tensor  # [context + rows, kv_heads, dim]
    value: torch.Tensor


def make_spec(dim, share=4, kv_heads=2, **changes):
    fields = {"scale": dim**-0.5, "window": None, "softcap": None, "sinks": False, **changes}
    return LayerSpec(share * kv_heads, kv_heads, dim, dim, **fields)


def make_pool(launcher, spec, dtype, rng, slots=SLOTS):
    pool = CudaKvPool(launcher, [spec], slots, dtype, PAGE_BITS)
    return pool, list(rng.permutation(slots >> PAGE_BITS))


def take_slots(free, count):
    pages = [free.pop() for _ in range(-(-count >> PAGE_BITS) + 1)]
    return np.concatenate([np.arange(16) + (page << PAGE_BITS) for page in pages])[:count].astype(np.int64)


def make_case(rng, free, spec, dtype, context, parents):
    slots = take_slots(free, context + len(parents))
    segment = Segment(slots[:context], slots[context:], parents)

    def normal(*shape):
        return torch.from_numpy(rng.standard_normal(shape, np.float32)).to(dtype)

    tokens = context + len(parents)
    return Case(
        segment,
        normal(len(parents), spec.q_heads, spec.k_dim),
        normal(tokens, spec.kv_heads, spec.k_dim),
        normal(tokens, spec.kv_heads, spec.k_dim),
    )


def run(launcher, pool, spec, cases, padding=0, sinks=None):
    """The kernel over all cases in one step: [rows, q_heads, dim] on the CPU."""
    device = launcher.device
    for case in cases:
        slots = torch.from_numpy(np.concatenate((case.segment.context, case.segment.slots)))
        pool.store(0, slots, case.key.to(device).transpose(0, 1), case.value.to(device).transpose(0, 1))
    query = torch.cat([case.query for case in cases])
    query = torch.cat((query, query.new_zeros(padding, *query.shape[1:]))).to(device)
    attention = CudaAttention(launcher, PAGE_BITS, (spec.window or 0,))
    plan = attention.plan([case.segment for case in cases], len(query))
    return plan.attend(query.transpose(0, 1), pool, 0, spec, None if sinks is None else sinks.to(device)).cpu()


def path_of(case, row):
    context, path = len(case.segment.context), []
    while row >= 0:
        path.append(context + row)
        row = case.segment.parents[row]
    return list(range(context)) + path[::-1]


def in_float64(case, row, spec, sinks=None):
    path = path_of(case, row)
    seen = path[-spec.window :] if spec.window else path
    out = []
    for head in range(spec.q_heads):
        kv_head = head // (spec.q_heads // spec.kv_heads)
        scores = case.key[seen, kv_head].double() @ case.query[row, head].double() * spec.scale
        if spec.softcap:
            scores = torch.tanh(scores / spec.softcap) * spec.softcap
        if sinks is not None:
            scores = torch.cat((scores, sinks[head : head + 1].double()))
        weights = scores.softmax(0)[: len(seen)]
        out.append(weights @ case.value[seen, kv_head].double())
    return torch.stack(out)


def random_tree(rng, rows):
    """A chain of one to three rows, then a random tree below it."""
    chain = int(rng.integers(1, 4))
    return [i - 1 if i < chain else int(rng.integers(0, i)) for i in range(rows)]
