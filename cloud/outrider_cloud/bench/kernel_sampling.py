"""Cases of the sampling rule."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from outrider_cloud.bench.kernels import Case, Setup
from outrider_cloud.bench.shapes import config_of
from outrider_cloud.kernels.cuda.sampling import CudaSampler, edit_table, records
from outrider_shared.sampling import SamplingParams
from outrider_shared.sampling.rule_torch import choose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PARAMS = {
    "greedy": SamplingParams(),
    "T=1": SamplingParams(temperature=1.0, seed=1),
    "T=0.8, top-p 0.95": SamplingParams(temperature=0.8, top_p=0.95, seed=2),
    "T=0.8, all filters": SamplingParams(temperature=0.8, top_k=50, top_p=0.95, min_p=0.02, seed=3),
}
# The host build has fewer threads, so that it ends in milliseconds.
_HOST_BLOCKS = {"ranks": 2, "threads": 64}


def sampling_cases(setup: Setup) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Each kind of parameters, over each kind of logits."""
    for name, params in _PARAMS.items():
        for kind, make in _LOGITS.items():
            yield f"sampling, {name}, {kind} logits", functools.partial(_case, setup, name, params, kind, make)


def _flat(rows: int, vocabulary: int, device: torch.device) -> torch.Tensor:
    """As random weights would have them: thousands of tokens share the mass."""
    return 4 * torch.randn(rows, vocabulary, device=device)


def _peaked(rows: int, vocabulary: int, device: torch.device) -> torch.Tensor:
    """As trained models have them: some tokens are far above all others."""
    logits = 2.5 * torch.randn(rows, vocabulary, device=device)
    some = torch.randint(0, vocabulary, (rows, min(100, vocabulary // 8)), device=device)
    return logits.scatter_(1, some, 8 + 12 * torch.rand(some.shape, device=device))


_LOGITS = {"flat": _flat, "peaked": _peaked}


def _case(setup: Setup, name: str, params: SamplingParams, kind: str, make: Callable[..., torch.Tensor]) -> Case:
    rows, vocabulary = setup.sizes.sampled, config_of(setup.shape).vocab_size
    logits = make(rows, vocabulary, setup.device).to(setup.dtype)
    positions, every = list(range(100, 100 + rows)), [params] * rows
    sampler = CudaSampler(setup.launcher, **({} if setup.device.type == "cuda" else _HOST_BLOCKS))
    table, count, edits = (
        torch.from_numpy(array).to(setup.device)
        for array in (records(positions, every), np.array([rows], np.int32), edit_table([]))
    )

    def ours() -> torch.Tensor:
        return sampler.launch(logits, table, count, edits, None, 0).chosen[:, 0]

    def differing() -> float:
        return (ours() != choose(logits, positions, every)).float().mean().item()

    return Case(
        bytes=logits.numel() * logits.element_size(),
        ours=ours,
        error=differing,
        peers={
            "torch rule": lambda: choose(logits, positions, every),
            "torch amax, which reads the logits once": lambda: logits.amax(-1),
            "flashinfer": _flashinfer(setup, logits, params),
        },
        fields={"kernel": "sampling", "rows": rows, "vocabulary": vocabulary, "params": name, "logits": kind,
                "error_is": "share of rows that choose another token than torch"},
    )  # fmt: skip


def _flashinfer(setup: Setup, logits: torch.Tensor, params: SamplingParams) -> Callable[[], Any] | str:
    if setup.device.type != "cuda":
        return "needs a card"
    if params.greedy:
        return "it has no greedy choice"
    try:
        sampling = importlib.import_module("flashinfer.sampling")
    except ImportError as error:
        return f"not importable: {error}"
    wide = logits.float() / params.temperature
    top_k = params.top_k or logits.shape[-1]
    return lambda: sampling.top_k_top_p_sampling_from_logits(wide, top_k, params.top_p)
