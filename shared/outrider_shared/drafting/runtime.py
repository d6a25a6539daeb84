"""The draft model on the device: ONNX Runtime over a pack, one KV buffer that is written in place, trees by a mask.

What makes it quick and exact:

- The KV cache of a session is one array, allocated once and bound to the graph as past *and* present, so a pass writes
  the new slots in place. Rewinding is forgetting: slots past the length are simply overwritten.
- Inputs live in fixed buffers, bound by address; a pass with the shape of the last one rebinds nothing but the mask.
- Only the rows asked for are projected to the vocabulary.
- Threads do not spin between passes: a device that waits for the network must not burn its battery.

`DraftModel` holds the weights, once per process; each session has a `DraftRuntime` with its own KV. A model may be
shared by threads, a runtime must not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from outrider_shared.drafting.slots import Slots
from outrider_shared.drafting.weights import check_signature, open_session
from outrider_shared.errors import ConfigError, DraftError, InternalError
from outrider_shared.packs import Pack, read_pack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnxruntime as ort
    from numpy.typing import NDArray

MAX_ROWS = 256  # of one pass; longer prompts go in several
DEFAULT_CAPACITY = 4096  # slots; a context of 128k would reserve gigabytes
_FIRST_LOGIT_ROWS = 8


class DraftModel:
    """The weights of one pack, loaded once; shared by all sessions of the process.

    Attributes:
        pack: The verified pack.
        manifest: Its manifest.
        session: The ONNX Runtime session.
        no_mask: [MAX_ROWS * context_length] float32 zeros, the mask of every chain; never written.
    """

    def __init__(self, pack: Pack, session: ort.InferenceSession) -> None:
        self.pack = pack
        self.manifest = pack.manifest
        self.session = session
        self.no_mask: NDArray[np.float32] = np.zeros(MAX_ROWS * pack.manifest.architecture.context_length, np.float32)

    @classmethod
    def load(cls, pack: Pack | str | Path, *, threads: int = 1) -> DraftModel:
        """Verify a pack and load its weights.

        Args:
            pack: A pack from `read_pack`, or the directory of one.
            threads: CPU threads of one pass; small drafts are quickest with one.

        Raises:
            ConfigError: `threads` is not positive.
            PackError: The pack is damaged, ONNX Runtime cannot load its graph, or the graph does not fit its manifest.
        """
        if threads < 1:
            raise ConfigError(f"a draft model needs at least one thread, not {threads}")
        verified = pack if isinstance(pack, Pack) else read_pack(pack)
        session = open_session(verified, threads)
        check_signature(session, verified)
        return cls(verified, session)

    @property
    def default_capacity(self) -> int:
        """KV slots of a runtime that was not told how many."""
        return min(self.manifest.architecture.context_length, DEFAULT_CAPACITY)

    def new_runtime(self, capacity: int | None = None) -> DraftRuntime:
        """A runtime for one session, with its own KV cache of `capacity` slots.

        By default these are the model's context length, at most `DEFAULT_CAPACITY`.

        Raises:
            ConfigError: `capacity` is not from 1 to the context length.
        """
        context = self.manifest.architecture.context_length
        if capacity is not None and not 1 <= capacity <= context:
            raise ConfigError(f"capacity {capacity} is not from 1 to the draft's context length {context}")
        return DraftRuntime(self, capacity or self.default_capacity)


class DraftRuntime:
    """One session's forward passes over a `DraftModel`; not thread-safe.

    Attributes:
        capacity: Number of KV slots.
        vocab_size: Width of the logits.
    """

    def __init__(self, model: DraftModel, capacity: int) -> None:
        shape = model.manifest.architecture
        self.capacity = capacity
        self.vocab_size = shape.vocab_size
        self._model = model
        self._slots = Slots()
        # [layers * 2, kv_heads, capacity, head_dim]: keys of layer i at 2i, its values at 2i + 1.
        self._kv = np.zeros((shape.layers * 2, shape.kv_heads, capacity, shape.head_dim), np.float32)
        self._ids = np.zeros(MAX_ROWS, np.int64)
        self._positions = np.zeros(MAX_ROWS, np.int64)
        self._rows = np.zeros(MAX_ROWS, np.int64)
        self._last_slot = np.zeros(1, np.int32)  # `seqlens_k` of GroupQueryAttention: used slots after the pass - 1
        self._total = np.zeros((), np.int32)  # used slots after the pass
        self._logits = np.zeros((_FIRST_LOGIT_ROWS, shape.vocab_size), np.float32)
        self._mask = np.zeros(0, np.float32)
        self._bound = (0, 0)  # (rows computed, rows asked for) that the buffers are bound with
        self._binding = model.session.io_binding()
        self._bind_fixed()

    @property
    def length(self) -> int:
        """Number of used KV slots."""
        return len(self._slots)

    def forward(
        self, tokens: Sequence[int], parents: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Append tokens at slots length, length + 1, ... and return logits for what follows them.

        Args:
            tokens: [count] token ids, count from 1 to `MAX_ROWS`.
            parents: [count] parent slot of each token; a parent may be a slot of the same pass. None for a chain below
                the last slot.
            rows: Indices into `tokens` of the rows whose logits are wanted; None for all.

        Returns:
            [rows, vocab_size] float32, a view that is valid until the next call.

        Raises:
            DraftError: Too many tokens for the capacity or for one pass, a token outside the vocabulary, an unknown
                parent or row, or a tree with nothing above it. Nothing was appended then.
            InternalError: ONNX Runtime failed; nothing was appended.
        """
        start, count = len(self._slots), len(tokens)
        self._check_room(start, count)
        self._ids[:count] = tokens
        if self._ids.view(np.uint64)[:count].max() >= self.vocab_size:
            raise DraftError(f"draft tokens {_brief(tokens)} are not all from 0 to {self.vocab_size - 1}")
        asked = self._set_rows(rows, count)
        self._append(parents, start, count)
        if self._bound != (count, asked):
            self._bind_shapes(count, asked)
        self._bind_mask(count)
        self._positions[:count] = self._slots.positions[start:]
        self._last_slot[0] = start + count - 1
        self._total[...] = start + count
        try:
            self._model.session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime raises plain RuntimeError and its own kinds
            self._slots.rewind(start)
            raise InternalError(f"the draft model failed at slot {start}: {error}") from error
        return self._logits[:asked]

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append a prompt of any length below the last slot, in passes of `MAX_ROWS`.

        Returns:
            [1, vocab_size] float32 logits of its last row, a view that is valid until the next call.

        Raises:
            DraftError: As `forward`; the capacity is checked before the first pass.
        """
        self._check_room(len(self._slots), len(tokens), limit=self.capacity)
        for first in range(0, len(tokens), MAX_ROWS):
            chunk = tokens[first : first + MAX_ROWS]
            logits = self.forward(chunk, rows=(len(chunk) - 1,))
        return logits

    def rewind(self, length: int) -> None:
        """Forget all slots from `length` on.

        Raises:
            DraftError: `length` is not from 0 to the used slots.
        """
        self._slots.rewind(length)

    def compact(self, base: int, kept: Sequence[int]) -> None:
        """Keep of the slots from `base` on only `kept`, moved down to base, base + 1, ...

        For a committed branch that is not the first: keep its slots, and those below it that are still of use.

        Args:
            base: First slot of the draft tree.
            kept: Ascending slot numbers; the parent of each is below `base` or kept too.

        Raises:
            DraftError: `kept` is not such a list; nothing was changed.
        """
        self._slots.compact(base, kept)
        if len(kept) and kept[-1] != base + len(kept) - 1:
            self._kv[:, :, base : base + len(kept)] = self._kv[:, :, list(kept)]

    def _check_room(self, start: int, count: int, limit: int = MAX_ROWS) -> None:
        if not 1 <= count <= limit:
            raise DraftError(f"a pass takes from 1 to {limit} tokens, not {count}")
        if start + count > self.capacity:
            raise DraftError(f"{count} tokens after {start} exceed the draft's capacity of {self.capacity} slots")

    def _set_rows(self, rows: Sequence[int] | None, count: int) -> int:
        asked = count if rows is None else len(rows)
        self._rows[:asked] = range(count) if rows is None else rows
        if rows is not None and (asked == 0 or self._rows.view(np.uint64)[:asked].max() >= count):
            raise DraftError(f"rows {_brief(rows)} are not all from 0 to {count - 1}")
        return asked

    def _append(self, parents: Sequence[int] | None, start: int, count: int) -> None:
        if parents is None:
            self._slots.append_chain(count)
            return
        if start == 0 or len(parents) != count:
            # The kernel takes positions from the slots in the first pass, so siblings there would get wrong ones.
            raise DraftError(
                f"{len(parents)} parents for {count} tokens after {start} slots; a tree needs a slot above it"
            )
        self._slots.append_tree(parents)

    def _bind_fixed(self) -> None:
        for index, buffer in enumerate(self._kv):
            layer, side = index // 2, ("key", "value")[index % 2]
            shape, address = [1, *buffer.shape], buffer.ctypes.data
            self._binding.bind_input(f"past_key_values.{layer}.{side}", "cpu", 0, np.float32, shape, address)
            self._binding.bind_output(f"present.{layer}.{side}", "cpu", 0, np.float32, shape, address)
        self._bind("seqlens_k", self._last_slot, [1])
        self._bind("total_sequence_length", self._total, [])

    def _bind_shapes(self, count: int, asked: int) -> None:
        if asked > len(self._logits):
            self._logits = np.zeros((min(MAX_ROWS, 2 * asked), self.vocab_size), np.float32)
        self._bind("input_ids", self._ids, [1, count])
        self._bind("position_ids", self._positions, [1, count])
        self._bind("logits_rows", self._rows, [asked])
        address = self._logits.ctypes.data
        self._binding.bind_output("logits", "cpu", 0, np.float32, [1, asked, self.vocab_size], address)
        self._bound = (count, asked)

    def _bind_mask(self, count: int) -> None:
        total = len(self._slots)
        mask = self._model.no_mask
        if not self._slots.is_chain:
            if len(self._mask) < count * total:
                self._mask = np.zeros(2 * count * total, np.float32)
            mask = self._mask
            self._slots.fill_bias(mask[: count * total].reshape(count, total))
        self._bind("attention_bias", mask, [1, 1, count, total])

    def _bind(self, name: str, buffer: NDArray[Any], shape: list[int]) -> None:
        self._binding.bind_input(name, "cpu", 0, buffer.dtype.type, shape, buffer.ctypes.data)


def _brief(numbers: Sequence[int]) -> str:
    return str(list(numbers[:8])) + ("..." if len(numbers) > 8 else "")
