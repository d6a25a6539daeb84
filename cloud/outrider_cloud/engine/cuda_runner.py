"""Steps on a GPU: fixed buffers, one captured graph per bucket of rows, one copy in and one small copy out.

A step writes its metadata into `StaticArrays`, copies it over, and replays the graph of the smallest bucket that fits.
While that runs the host finds out what changes the logits; the sampling kernel is launched behind the graph with it,
and the choices are copied back (`cuda_flight`): that copy is the only time the host waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from outrider_cloud.engine.batch import Batch
from outrider_cloud.engine.cuda_flight import Choosing, Stopwatch, current
from outrider_cloud.engine.cuda_graphs import Capture, Graphs
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.engine.static import StaticArrays
from outrider_cloud.kernels.cuda.attention import CudaPlan, WindowTensors, Workspace
from outrider_cloud.kernels.cuda.metadata import step_arrays
from outrider_cloud.kernels.cuda.source import SPLIT
from outrider_cloud.model.attention import StepContext
from outrider_cloud.model.decoder import Decoder, is_known
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.runner import Flight
    from outrider_cloud.kernels.cuda.kv import CudaKvPool
    from outrider_cloud.kernels.cuda.platform import CudaPlatform
    from outrider_cloud.model.loading import LoadedModel

_LEAST_BUCKET = 8


class CudaRunner(ModelRunner):
    """A loaded model on a GPU.

    Args:
        loaded: The model, on the platform's device.
        platform: Its kernels.
        config: Sizes. Rows are padded to `config.buckets` in exact mode, else to powers of two up to its row budget.
        capture: How a bucket's computation is repeated; by default in CUDA graphs.

    Raises:
        ConfigError: if a page of the platform is no block of the engine.
    """

    platform: CudaPlatform
    kv: CudaKvPool

    def __init__(
        self, loaded: LoadedModel, platform: CudaPlatform, config: EngineConfig, capture: Capture | None = None
    ) -> None:
        if 1 << platform.page_bits != config.block_size:
            raise ConfigError(f"a block of {config.block_size} tokens", hint=f"the GPU has {1 << platform.page_bits}")
        super().__init__(loaded, platform, config)
        if not config.exact:
            self.buckets = _powers_of_two(config.rows)
        self._capture = capture or Graphs()
        # A thread's current card is the first unless it says otherwise; streams and captures are the current card's.
        self._current = current(platform.device)
        self._decoder = Decoder(loaded.model, loaded.layers, platform.layers) if is_known(loaded.model) else None
        self._windows = sorted({spec.window or 0 for spec in loaded.layers})
        self._ancestor_width = max(1, config.max_draft_rows)
        rows, longest = self.buckets[-1], min(loaded.context_length + config.max_draft_rows, config.kv_tokens)
        splits = -(-longest // SPLIT)
        per_window = {f"parts{w}": rows for w in self._windows} | {f"work{w}": 2 * rows * splits for w in self._windows}
        self._arrays = StaticArrays(
            {
                "tokens": rows, "positions": rows, "slots": rows, "forks": rows, "keep": rows, "tiles": 3 * rows,
                "ancestors": rows * self._ancestor_width, "counts": len(self._windows),
                "table": rows * (-(-longest // config.block_size) + 1), **per_window,
            },
            platform.device,
        )  # fmt: skip
        self._entries = rows * splits
        self._workspace = Workspace(platform.device)
        # Whole before anything is captured: a graph remembers where it was.
        self._workspace.reserve(self._entries, max(spec.q_heads for spec in loaded.layers), loaded.layers[0].k_dim)
        self._choosing = Choosing(platform.sampler, rows, platform.device)
        self._steps: dict[int, Callable[[], torch.Tensor]] = {}
        self._most_moves = rows
        self._moves: list[tuple[Sequence[int], Sequence[int]]] = []
        self._moving = StaticArrays({"moves": 2 * rows, "starts": rows + 1, "groups": 1}, platform.device)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Capture every bucket before the first session comes: the largest first, whose memory the others share.

        What chooses behind them is compiled, too.

        Raises:
            torch.OutOfMemoryError: if there is no room for a step.
        """
        nothing = Batch([], [], [], [], [], [])
        with self._current:
            for rows in sorted(self.buckets, reverse=True):
                self._write(nothing, rows)
                self._arrays.upload()
                self._step(rows)
            self.platform.sampler.prepare(self.buckets[-1], self.loaded.dtype)

    @torch.inference_mode()
    def run(self, batch: Batch, bucket: int = 0) -> torch.Tensor:
        """As `ModelRunner.run`."""
        with self._current:
            return self._replay(batch, bucket)[: len(batch.sampled)].clone()  # the next step writes the same memory

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Flight:
        """As `ModelRunner.launch`: the host is free while the device computes."""
        with self._current:
            watch = Stopwatch(self.platform.device)
            logits = self._replay(batch, 0)[: len(batch.sampled)]
        return self._choosing.flight(batch, logits, watch, self._count)

    def _count(self, seconds: float) -> None:
        self.forward_s += seconds

    def _replay(self, batch: Batch, bucket: int) -> torch.Tensor:
        self.peers.step(batch, bucket, self.buckets)
        size = self._padded(len(batch.tokens), bucket)
        self._move_all()
        self._write(batch, size)
        self._arrays.upload()
        return self._step(size)()

    def _step(self, rows: int) -> Callable[[], torch.Tensor]:
        if rows not in self._steps:
            self._steps[rows] = self._capture(lambda: self._compute(rows))
        return self._steps[rows]

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """As `ModelRunner.move`; done before the next step, all sessions' moves in one launch."""
        self.peers.move(source, target)
        if sum(len(sources) for sources, _ in self._moves) + len(source) > self._most_moves:
            with self._current:
                self._move_all()
        if len(source) > self._most_moves:
            self.kv.move(source, target)
        else:
            self._moves.append((source, target))

    def _move_all(self) -> None:
        """A session's moves lie in blocks of its own, so sessions need not wait for each other."""
        if not self._moves:
            return
        arrays, moves, starts = self._moving, [], [0]
        for source, target in self._moves:
            moves += [slot for pair in zip(source, target, strict=True) for slot in pair]
            starts.append(len(moves) // 2)
        arrays.write("moves", moves)
        arrays.write("starts", starts)
        arrays.write("groups", [len(self._moves)])
        arrays.upload()
        self.kv.launch_moves(arrays["moves"], arrays["starts"], arrays["groups"], len(self._moves))
        self._moves.clear()

    def _write(self, batch: Batch, rows: int) -> None:
        arrays, page_bits = self._arrays, self.platform.page_bits
        step = step_arrays(batch.segments, rows, page_bits, self._windows, self._ancestor_width)
        arrays.write("tokens", batch.tokens)
        arrays.write("positions", step.positions)
        arrays.write("slots", step.slots, fill=-1)
        arrays.write("forks", step.forks, fill=1)
        arrays.write("ancestors", step.ancestors)
        arrays.write("tiles", step.tiles)
        arrays.write("table", step.table)
        arrays.write("keep", batch.sampled)
        arrays.write("counts", [len(step.windows[window].work) for window in self._windows])
        for window in self._windows:
            arrays.write(f"parts{window}", step.windows[window].parts, fill=-1)
            arrays.write(f"work{window}", step.windows[window].work)

    def _compute(self, rows: int) -> torch.Tensor:
        """Logits of a bucket, from the static arrays alone."""
        arrays = self._arrays
        windows = {
            window: WindowTensors(
                arrays[f"parts{window}"][:rows], arrays[f"work{window}"], arrays["counts"][i : i + 1], self._entries
            )
            for i, window in enumerate(self._windows)
        }
        ancestors = arrays["ancestors"].view(-1, self._ancestor_width)[:rows]
        plan = CudaPlan(
            self.platform.launcher, self._workspace, arrays["positions"][:rows], arrays["slots"][:rows],
            arrays["forks"][:rows], ancestors, arrays["tiles"], arrays["table"], windows,
        )  # fmt: skip
        tokens, keep = arrays["tokens"][:rows], arrays["keep"][:rows]
        if self._decoder is not None:
            return self._decoder(tokens, plan.positions, plan.slots, keep, self.kv, plan)
        out = self.loaded.model(
            input_ids=tokens[None], position_ids=plan.positions[None], use_cache=False,
            logits_to_keep=keep.long(), outrider=StepContext(self.kv, plan.slots, plan, self.loaded.layers),
        )  # fmt: skip
        logits: torch.Tensor = out.logits[0]
        return logits


def _powers_of_two(most: int) -> tuple[int, ...]:
    sizes = [_LEAST_BUCKET]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], max(most, _LEAST_BUCKET)))
    return tuple(int(size) for size in np.unique(sizes))
