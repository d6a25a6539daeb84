"""The sampling rule on the GPU: the wrapper of `sampling.cu`. The definition is `outrider_shared.sampling.rule`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from outrider_cloud.kernels.cuda.source import RANKS, SAMPLING_BYTES, THREADS, sampling_variant
from outrider_shared.errors import ModelError
from outrider_shared.sampling import SamplingParams
from outrider_shared.sampling.philox import split_seed

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from outrider_cloud.kernels.cuda.launch import Launcher
    from outrider_shared.sampling.shape_torch import Shaping

# Of `Record` in sampling.cu.
WORDS = 12
# Tokens that a warp lists at most: 72 KiB a block, so that two fit onto a multiprocessor.
_ROOM = 768
_NO_EDITS = np.zeros((0, 5), np.int32)


@dataclass(frozen=True)
class RowEdit:
    """What penalties and a bias do to one token's logit; `edit_rows` makes a table of them.

    Attributes:
        token: Its id.
        repetition: Divides a positive logit and multiplies any other; 1 is off.
        frequency: Subtracted: the penalty times how often the answer has the token, in float32.
        presence: Subtracted.
        bias: Added.
    """

    token: int
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    bias: float = 0.0


@dataclass(frozen=True)
class Extras:
    """What some rows want beyond their parameters; all optional.

    Attributes:
        logprobs: Per row, whether the log-probability of the choice is wanted.
        top_n: Likeliest tokens to tell for these rows.
        edits: Per row, [edits, 5] int32 of `edit_rows`; a row names a token once at most.
        masks: Per row, [ceil(vocabulary / 32)] uint32 with a bit for each allowed token, or None.
    """

    logprobs: Sequence[bool] = ()
    top_n: int = 0
    edits: Sequence[NDArray[np.int32]] = ()
    masks: Sequence[NDArray[np.uint32] | None] = ()


@dataclass(frozen=True)
class Choices:
    """Results on the device; only rows that asked have log-probabilities.

    Attributes:
        chosen: [rows, 2] int32, the token, and 1 where a logit of the row is no number.
        logprobs: [rows] float32.
        top_tokens, top_logprobs: [rows, top_n].
    """

    chosen: torch.Tensor
    logprobs: torch.Tensor
    top_tokens: torch.Tensor
    top_logprobs: torch.Tensor


def records(
    positions: Sequence[int], params: Sequence[SamplingParams], extras: Extras | None = None
) -> NDArray[np.int32]:
    """[rows, WORDS] int32: `Record` of sampling.cu, floats by their bits."""
    table = np.zeros((len(params), WORDS), np.int32)
    floats, words = table.view(np.float32), table.view(np.uint32)
    first_edit = mask = 0
    for row, (position, p) in enumerate(zip(positions, params, strict=True)):
        floats[row, 0], floats[row, 2] = p.temperature, p.top_p
        floats[row, 3] = np.float32(np.log(p.min_p)) if p.min_p > 0.0 else -np.inf
        table[row, 1] = p.top_k if p.top_k < 1 << 31 else 0
        words[row, 4], words[row, 5] = split_seed(p.seed)
        table[row, 6], table[row, 10] = position, -1
        if extras is None:
            continue
        table[row, 7] = bool(extras.logprobs and extras.logprobs[row])
        edits = len(extras.edits[row]) if extras.edits else 0
        table[row, 8], table[row, 9] = first_edit, edits
        first_edit += edits
        if extras.masks and extras.masks[row] is not None:
            table[row, 10] = mask
            mask += 1
    return table


def edit_rows(edits: Sequence[RowEdit]) -> NDArray[np.int32]:
    """[edits, 5] int32: token, then repetition, frequency, presence and bias by their bits."""
    table = np.zeros((len(edits), 5), np.int32)
    table[:, 0] = [edit.token for edit in edits]
    floats = [(edit.repetition, edit.frequency, edit.presence, edit.bias) for edit in edits]
    table.view(np.float32)[:, 1:] = np.asarray(floats, np.float32).reshape(-1, 4)
    return table


def edit_table(edits: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """[edits, 5] int32, rows one after the other; at least one line."""
    return np.concatenate(edits) if any(len(row) for row in edits) else np.zeros((1, 5), np.int32)


def extras_of(shaping: Shaping | None, rows: int, asked: Collection[int], top_n: int) -> Extras | None:
    """What the kernel is told of a step's changes and of the rows whose log-probabilities are wanted.

    Args:
        shaping: The changes, in the order of `outrider_shared.sampling.shape`; None changes nothing.
        rows: Of the step.
        asked: Rows whose log-probabilities are wanted.
        top_n: Likeliest tokens to tell for these.
    """
    if shaping is None and not asked:
        return None
    masks: list[NDArray[np.uint32] | None] = [None] * rows
    edits = [_NO_EDITS] * rows
    if shaping is not None:
        for row, mask in shaping.masks:
            masks[row] = mask
        penalties = {row: (ids, counts, params) for row, ids, counts, params in shaping.penalties}
        biases = dict(shaping.biases)
        bans = dict(shaping.banned)
        for row in penalties.keys() | biases.keys() | bans.keys():
            edits[row] = _edits(penalties.get(row), biases.get(row, ()), bans.get(row, ()))
    return Extras([row in asked for row in range(rows)], top_n, edits, masks)


def _edits(
    penalty: tuple[NDArray[np.int64], NDArray[np.float32], SamplingParams] | None,
    bias: Sequence[tuple[int, float]],
    banned: Sequence[int],
) -> NDArray[np.int32]:
    ids = penalty[0] if penalty is not None else np.zeros(0, np.int64)
    more = np.asarray([*(token for token, _ in bias), *banned], np.int64)
    added = np.setdiff1d(more, ids)
    table = np.zeros((len(ids) + len(added), 5), np.int32)
    floats = table.view(np.float32)
    table[: len(ids), 0], table[len(ids) :, 0] = ids, added
    floats[:, 1] = 1.0
    if penalty is not None:
        _, counts, params = penalty
        floats[: len(ids), 1] = params.repetition_penalty
        floats[: len(ids), 2] = np.float32(params.frequency_penalty) * counts
        floats[: len(ids), 3] = np.float32(params.presence_penalty) * (counts > 0)
    if len(more):
        order = np.argsort(table[:, 0])
        places = order[np.searchsorted(table[:, 0], more, sorter=order)]
        floats[places[: len(bias)], 4] = [value for _, value in bias]
        floats[places[len(bias) :], 4] = -np.inf
    return table


@dataclass(frozen=True, slots=True)
class Share:
    """What a block has of a row of logits.

    Attributes:
        span: Tokens, a bit each for those that are edited.
        room: Tokens that a warp can list, eight bytes each; with less more rows are read twice.
        shared_bytes: Of the block.
    """

    span: int
    room: int
    shared_bytes: int


def share_of(vocabulary: int, ranks: int, threads: int, shared_bytes: int) -> Share:
    """The share of each of `ranks` blocks of `threads` threads that have so much shared memory.

    Raises:
        ModelError: if that is too little.
    """
    span = -(-vocabulary // (32 * ranks)) * 32
    fixed, entry = SAMPLING_BYTES + span // 8, 8 * threads // 32
    room = min(_ROOM, (shared_bytes - fixed) // entry)
    if room < 1:
        raise ModelError(
            f"a vocabulary of {vocabulary} does not fit the sampling kernel: a block needs {fixed + entry} bytes of "
            f"shared memory, here it gets {shared_bytes}",
            hint="serve with --device cpu, or on a card that gives more",
        )
    return Share(span, room, fixed + room * entry)


def ranks_of(rows: int, processors: int) -> int:
    """Blocks that share a row: as many as let all rows run at once with two blocks on a multiprocessor."""
    return next((ranks for ranks in RANKS if rows * ranks <= 2 * processors), RANKS[-1])


class CudaSampler:
    """The rule over the rows of a step.

    Args:
        launcher: Of the device.
        ranks: Blocks that share a row; 0 is as `ranks_of` says. Choices do not depend on it.
        threads: Threads of a block.
        room: As in `Share`, at most.
    """

    def __init__(self, launcher: Launcher, ranks: int = 0, threads: int = THREADS, room: int = _ROOM) -> None:
        self._launcher = launcher
        self._ranks, self._threads, self._room = ranks, threads, room

    def prepare(self, rows: int, dtype: torch.dtype) -> None:
        """Compile what steps of up to so many rows need, so that no session waits for it."""
        logits = torch.zeros(1, 64, dtype=dtype, device=self._launcher.device)
        for ranks in {self._ranks or ranks_of(count, self._launcher.processors) for count in range(1, rows + 1)}:
            CudaSampler(self._launcher, ranks, self._threads, self._room).choose(logits, [0], [SamplingParams()])

    def choose(self, logits: torch.Tensor, positions: Sequence[int], params: Sequence[SamplingParams]) -> list[int]:
        """The chosen token ids; see `outrider_cloud.kernels.sampling.Sampler`."""
        return self.sample(logits, positions, params).chosen[:, 0].tolist()

    def sample(
        self,
        logits: torch.Tensor,
        positions: Sequence[int],
        params: Sequence[SamplingParams],
        extras: Extras | None = None,
    ) -> Choices:
        """Choices of every row, with what `extras` asks for."""
        given, device = extras or Extras(), logits.device
        masks = [mask for mask in given.masks if mask is not None]
        return self.launch(
            logits,
            torch.from_numpy(records(positions, params, given)).to(device),
            torch.tensor([len(params)], dtype=torch.int32).to(device),
            torch.from_numpy(edit_table(given.edits)).to(device),
            torch.from_numpy(np.stack(masks).view(np.int32)).to(device) if masks else None,
            given.top_n,
        )

    def launch(
        self,
        logits: torch.Tensor,
        table: torch.Tensor,
        rows: torch.Tensor,
        edits: torch.Tensor,
        masks: torch.Tensor | None,
        top_n: int,
    ) -> Choices:
        """Start the kernel.

        Args:
            logits: [rows, vocab] bfloat16 or float16, contiguous.
            table: [rows, WORDS] int32 of `records`.
            rows: [1] int32, rows that count.
            edits: [edits, 5] int32 of `edit_table`.
            masks: [masks, words] int32 or None.
            top_n: Likeliest tokens of rows that want log-probabilities.
        """
        count, vocabulary = logits.shape
        ranks, device = self._ranks or ranks_of(count, self._launcher.processors), logits.device
        share = share_of(vocabulary, ranks, self._threads, self._launcher.shared_bytes)
        out = Choices(
            torch.zeros(count, 2, dtype=torch.int32, device=device),
            torch.zeros(count, device=device),
            torch.zeros(count, top_n, dtype=torch.int32, device=device),
            torch.zeros(count, top_n, device=device),
        )
        self._launcher.launch(
            sampling_variant(logits.dtype, ranks, self._threads),
            "sample_rows",
            (count * ranks, 1, 1),
            self._threads,
            (
                logits.contiguous(), vocabulary, share.span, min(share.room, self._room), table, rows, edits, masks,
                0 if masks is None else masks.shape[1], top_n, out.chosen, out.logprobs, out.top_tokens,
                out.top_logprobs,
            ),
            share.shared_bytes,
        )  # fmt: skip
        return out
