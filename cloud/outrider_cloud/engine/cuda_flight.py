"""What follows a forward on a GPU: the choice behind it, and one small copy back.

    tokens   [rows, 2]        choice, and whether a logit is no number
    reports  [asked]          float bits: the log-probability of the choice
             [asked, top_n]   likeliest tokens
             [asked, top_n]   float bits: theirs

Reports are of the rows that asked for log-probabilities alone, and are there only if some did.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from outrider_cloud.engine.runner import Decision
from outrider_cloud.engine.static import StaticArrays
from outrider_cloud.kernels.cuda import sampling
from outrider_shared.logprobs import TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from outrider_cloud.engine.batch import Batch
    from outrider_cloud.kernels.cuda.sampling import Choices, CudaSampler, Extras
    from outrider_shared.sampling.shape_torch import Shaping


def current(device: torch.device) -> AbstractContextManager[None]:
    """Makes a card the thread's current one; nothing on a CPU. May be entered again and again, not within itself."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class Stopwatch:
    """How long a device takes for what is launched until `stop`; started when it is made.

    Args:
        device: On a CPU what was launched is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: list[Any] = []
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        self._began = time.perf_counter()
        if self._events:
            self._events[0].record()

    def stop(self) -> None:
        """Everything is launched."""
        if self._events:
            self._events[1].record()
        self._ended = time.perf_counter()

    def running(self) -> bool:
        """Whether the device is not done."""
        return bool(self._events) and not self._events[1].query()

    def wait(self) -> float:
        """Wait for the device; returns the seconds that it took."""
        if not self._events:
            return self._ended - self._began
        self._events[1].synchronize()
        milliseconds: float = self._events[0].elapsed_time(self._events[1])
        return milliseconds / 1e3


class Choosing:
    """Launches the sampling kernel behind forwards, one at a time.

    Args:
        sampler: The kernel.
        rows: Of a step, at most.
        device: Where.
    """

    def __init__(self, sampler: CudaSampler, rows: int, device: torch.device) -> None:
        self._sampler, self.device = sampler, device
        self._arrays = StaticArrays({"records": rows * sampling.WORDS, "sampled": 1}, device)
        self._no_edits = torch.from_numpy(sampling.edit_table([])).to(device)

    def flight(
        self, batch: Batch, logits: torch.Tensor, watch: Stopwatch, count: Callable[[float], None]
    ) -> CudaFlight:
        """The step whose forward was launched: its logits [sampled, vocab], and whom to tell the time that it took."""
        return CudaFlight(self, batch, logits, watch, count)

    def launch(self, batch: Batch, logits: torch.Tensor, extras: Extras | None) -> Choices:
        """Start the kernel."""
        rows, arrays = len(batch.sampled), self._arrays
        arrays.write("records", sampling.records(batch.choosing, batch.params, extras))
        arrays.write("sampled", [rows])
        arrays.upload()
        table = arrays["records"].view(-1, sampling.WORDS)[:rows]
        if extras is None:
            return self._sampler.launch(logits, table, arrays["sampled"], self._no_edits, None, 0)
        edits = self.sent(sampling.edit_table(extras.edits))
        kept = [mask for mask in extras.masks if mask is not None]
        masks = self.sent(np.stack(kept).view(np.int32)) if kept else None
        return self._sampler.launch(logits, table, arrays["sampled"], edits, masks, extras.top_n)

    def sent(self, values: NDArray[np.int32]) -> torch.Tensor:
        """On the device, by a copy that the host does not wait for."""
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


class CudaFlight:
    """See `outrider_cloud.engine.runner.Flight`."""

    def __init__(
        self, choosing: Choosing, batch: Batch, logits: torch.Tensor, watch: Stopwatch, count: Callable[[float], None]
    ) -> None:
        self._choosing, self._batch, self._logits = choosing, batch, logits
        self._watch, self._count = watch, count
        self._asked = sorted(batch.reports)
        self._top_n = min(max(batch.reports.values(), default=0), logits.shape[-1])

    @torch.inference_mode()
    def choose(self, shaping: Shaping | None) -> None:
        """Launch the choice and the copy of what it says."""
        rows = len(self._batch.sampled)
        self._result = torch.zeros(0, dtype=torch.int32)
        with current(self._choosing.device):
            if rows:
                extras = sampling.extras_of(shaping, rows, self._batch.reports, self._top_n)
                packed = self._packed(self._choosing.launch(self._batch, self._logits, extras))
                self._result = torch.empty(len(packed), dtype=torch.int32, pin_memory=packed.is_cuda)
                self._result.copy_(packed, non_blocking=True)
            self._watch.stop()

    def busy(self) -> bool:
        """As `Flight.busy`."""
        return self._watch.running()

    def wait(self) -> Decision:
        """As `Flight.wait`."""
        self._count(self._watch.wait())
        rows, result = len(self._batch.sampled), self._result.numpy()
        tokens = result[: 2 * rows].reshape(rows, 2)
        chosen, bad = tokens[:, 0].tolist(), set(np.flatnonzero(tokens[:, 1]).tolist())
        return Decision(chosen, bad, self._reports(result[2 * rows :]))

    def _packed(self, choices: Choices) -> torch.Tensor:
        """[2 * rows + reports] int32 on the device."""
        if not self._asked:
            return choices.chosen.view(-1)
        asked = self._choosing.sent(np.asarray(self._asked, np.int32))
        parts = (choices.logprobs, choices.top_tokens, choices.top_logprobs)
        reports = [part.index_select(0, asked).view(torch.int32).reshape(-1) for part in parts]
        return torch.cat((choices.chosen.view(-1), *reports))

    def _reports(self, values: NDArray[np.int32]) -> Callable[[Sequence[int], int], list[TokenLogprobs]]:
        count = len(self._asked)
        place = {row: at for at, row in enumerate(self._asked)}
        own = values[:count].view(np.float32).tolist()
        tops = values[count:].reshape(2, count, self._top_n)
        ids, likelihoods = tops[0].tolist(), tops[1].view(np.float32).tolist()

        def logprobs(rows: Sequence[int], top: int) -> list[TokenLogprobs]:
            at = [place[row] for row in rows]
            return [TokenLogprobs(own[i], tuple(zip(ids[i][:top], likelihoods[i][:top], strict=True))) for i in at]

        return logprobs
