"""Steps on a GPU: fixed buffers, one captured graph per bucket of rows, one copy in and one small copy out.

A step writes its metadata into `StaticArrays`, copies it over, and replays the graph of the smallest bucket that fits.
While that runs the host finds out what changes the logits; the sampling kernel is launched behind the graph with it,
and the choices are copied back (`cuda_flight`): that copy is the only time the host waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch

from outrider_cloud.engine.cuda_flight import Choosing, Stopwatch, current
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.engine.static import StaticArrays
from outrider_cloud.kernels.cuda.attention import CudaPlan, WindowTensors, Workspace
from outrider_cloud.kernels.cuda.metadata import step_arrays
from outrider_cloud.kernels.cuda.source import SPLIT
from outrider_cloud.model.attention import StepContext
from outrider_cloud.model.decoder import Decoder, is_known
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_cloud.engine.batch import Batch
    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.runner import Flight
    from outrider_cloud.kernels.cuda.platform import CudaPlatform
    from outrider_cloud.model.loading import LoadedModel

T = TypeVar("T")
_LEAST_BUCKET = 8


class Capture(Protocol):
    """Turns a computation over fixed buffers into something that can be repeated cheaply."""

    def __call__(self, compute: Callable[[], T]) -> Callable[[], T]:
        """A function that computes again into the tensors it returned first."""


def eagerly(compute: Callable[[], T]) -> Callable[[], T]:
    """No capture: compute every time, as the host build of the kernels does."""
    return compute


def as_graph(compute: Callable[[], T]) -> Callable[[], T]:
    """Capture in a CUDA graph. Other threads may use CUDA meanwhile, hence the thread-local mode."""
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles kernels, lets cuBLAS take its workspace
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = compute()

    def replay() -> T:
        graph.replay()
        return result

    return replay


class CudaRunner(ModelRunner):
    """A loaded model on a GPU.

    Args:
        loaded: The model, on the platform's device.
        platform: Its kernels.
        config: Sizes. Rows are padded to `config.buckets` in exact mode, else to powers of two up to its row budget.
        capture: How a bucket's computation is repeated.

    Raises:
        ConfigError: if a page of the platform is no block of the engine.
    """

    platform: CudaPlatform

    def __init__(
        self, loaded: LoadedModel, platform: CudaPlatform, config: EngineConfig, capture: Capture = as_graph
    ) -> None:
        if 1 << platform.page_bits != config.block_size:
            raise ConfigError(f"a block of {config.block_size} tokens", hint=f"the GPU has {1 << platform.page_bits}")
        super().__init__(loaded, platform, config)
        if not config.exact:
            self.buckets = _powers_of_two(config.rows)
        self._capture = capture
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
        first = loaded.layers[0]
        self._workspace.reserve(self._entries, first.q_heads, first.k_dim)
        self._choosing = Choosing(platform.sampler, rows, platform.device)
        self._steps: dict[int, Callable[[], torch.Tensor]] = {}

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
        self._write(batch, size)
        self._arrays.upload()
        if size not in self._steps:
            self._steps[size] = self._capture(lambda: self._compute(size))
        return self._steps[size]()

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
