"""The accept walk on the GPU: the wrapper of `accept.cu`. The reference is `outrider_cloud.engine.accept`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from outrider_cloud.kernels.cuda.source import accept_variant

if TYPE_CHECKING:
    from outrider_cloud.kernels.cuda.launch import Launcher


@dataclass(frozen=True)
class Accepted:
    """What each session commits, on the device.

    Attributes:
        path: [sessions, width] int32, row within the session that chose each committed token (0 is the root).
        lengths: [sessions] int32, tokens committed.
        refused: [sessions] int32, 1 if drafts hung below the last of those rows.
    """

    path: torch.Tensor
    lengths: torch.Tensor
    refused: torch.Tensor


def accept_walk(
    launcher: Launcher,
    starts: torch.Tensor,
    sessions: torch.Tensor,
    tokens: torch.Tensor,
    parents: torch.Tensor,
    chosen: torch.Tensor,
    width: int,
) -> Accepted:
    """Walk every session's tree.

    Args:
        launcher: Of the device.
        starts: [most sessions + 1] int32, first sampled row of each session.
        sessions: [1] int32, how many count.
        tokens: [rows] int32, drafted token of each row; of a root any.
        parents: [rows] int32, the parent's row within its session (0 is the root), -1 of a root.
        chosen: [rows] int32, the target's choice after each row.
        width: Most tokens of a path.
    """
    most = len(starts) - 1
    out = Accepted(
        *(torch.zeros(shape, dtype=torch.int32, device=chosen.device) for shape in ((most, width), most, most))
    )
    launcher.launch(accept_variant(), "accept_walk", (most, 1, 1), 32, (
        starts, sessions, tokens, parents, chosen.contiguous(), width, out.path, out.lengths, out.refused,
    ))  # fmt: skip
    return out
