"""Penalties, bias and masks in torch, over the rows of a step at once: what a GPU kernel has to equal.

A step's changes are lists of (row, token, ...), so that one gather, a few elementwise operations and one scatter do
them all, and bit masks for the rows that follow a grammar. The order is that of `outrider_shared.sampling.shape`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from outrider_shared.sampling.params import SamplingParams


@dataclass(slots=True)
class Shaping:
    """What changes the logits of a step's rows.

    Attributes:
        penalties: Per row with penalties: row, token ids [n] int64, counts [n] float32, and the parameters.
        biases: Per row with a bias: row, and pairs of token and bias.
        banned: Per row that must not end the answer: row, and token ids.
        masks: Per row that follows a grammar: row, and [ceil(vocab / 32)] uint32, token v allowed by bit v % 32 of
            word v // 32.
    """

    penalties: list[tuple[int, NDArray[np.int64], NDArray[np.float32], SamplingParams]] = field(default_factory=list)
    biases: list[tuple[int, Sequence[tuple[int, float]]]] = field(default_factory=list)
    banned: list[tuple[int, Sequence[int]]] = field(default_factory=list)
    masks: list[tuple[int, NDArray[np.uint32]]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.penalties or self.biases or self.banned or self.masks)


def shape(logits: torch.Tensor, shaping: Shaping) -> torch.Tensor:
    """Logits [rows, vocab] of any float type with a step's changes: [rows, vocab] float32, the given ones untouched."""
    out = logits.to(torch.float32, copy=True)
    if shaping.penalties:
        _penalise(out, shaping)
    if shaping.biases:
        where = _places([(row, [token for token, _ in pairs]) for row, pairs in shaping.biases], out.device)
        values = [bias for _, pairs in shaping.biases for _, bias in pairs]
        out[where] += torch.tensor(values, dtype=torch.float32, device=out.device)
    if shaping.banned:
        out[_places(shaping.banned, out.device)] = -torch.inf
    if shaping.masks:
        rows = torch.tensor([row for row, _ in shaping.masks], device=out.device)
        allowed = _unpack(np.stack([mask for _, mask in shaping.masks]), out.shape[-1]).to(out.device)
        out[rows] = out[rows].masked_fill_(~allowed, -torch.inf)
    return out


def _penalise(out: torch.Tensor, shaping: Shaping) -> None:
    def column(values: list[float]) -> torch.Tensor:
        each = np.repeat(np.asarray(values, np.float32), [len(ids) for _, ids, _, _ in shaping.penalties])
        return torch.from_numpy(each).to(out.device)

    where = _places([(row, ids) for row, ids, _, _ in shaping.penalties], out.device)
    counts = torch.from_numpy(np.concatenate([counts for _, _, counts, _ in shaping.penalties])).to(out.device)
    params = [p for _, _, _, p in shaping.penalties]
    repetition = column([p.repetition_penalty for p in params])
    z = out[where]
    z = torch.where(z > 0, z / repetition, z * repetition)
    z = z - column([p.frequency_penalty for p in params]) * counts
    out[where] = z - column([p.presence_penalty for p in params]) * (counts > 0).float()


def _places(
    parts: Sequence[tuple[int, Sequence[int] | NDArray[np.int64]]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = np.repeat(np.asarray([row for row, _ in parts], np.int64), [len(ids) for _, ids in parts])
    ids = np.concatenate([np.asarray(ids, np.int64) for _, ids in parts])
    return torch.from_numpy(rows).to(device), torch.from_numpy(ids).to(device)


def _unpack(masks: NDArray[np.uint32], vocabulary: int) -> torch.Tensor:
    """[rows, vocabulary] bool; tokens beyond the masks are not allowed."""
    bits = np.unpackbits(masks.astype("<u4").view(np.uint8), axis=-1, bitorder="little")[:, :vocabulary]
    allowed = np.zeros((len(masks), vocabulary), np.bool_)
    allowed[:, : bits.shape[1]] = bits
    return torch.from_numpy(allowed)
