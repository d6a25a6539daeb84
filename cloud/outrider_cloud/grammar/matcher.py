"""Where an answer stands in its grammar, and what may follow it and each drafted token below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from outrider_shared.errors import GrammarError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Matcher:
    """One session's state. Used by one thread at a time.

    Args:
        start: llguidance's matcher at the start of an answer; copied, never changed.
        vocabulary: Tokens of the model.

    Rules:
        * A mask is a function of the grammar and of the tokens before it: drafted or committed, all the same.
        * A drafted token that the grammar refuses gets no mask, nor does what hangs below it: nothing leads there.
    """

    def __init__(self, start: Any, vocabulary: int) -> None:
        self._start = start
        self._matcher = start.deep_copy()
        self._length = 0
        self._words = -(-vocabulary // 32)

    def follow(self, answer: Sequence[int]) -> None:
        """Take over what the answer grew by.

        Raises:
            GrammarError: if the answer does not fit the grammar.
        """
        taken = self._matcher.try_consume_tokens(list(answer[self._length :]))
        self._length += taken
        if self._length < len(answer) or self._matcher.is_error():
            reason = self._matcher.get_error() or f"token {answer[self._length]} cannot stand there"
            raise GrammarError(f"the answer left its grammar at token {self._length}: {reason}")

    def masks(
        self, answer: Sequence[int], nodes: Sequence[tuple[int, int]]
    ) -> tuple[dict[int, NDArray[np.uint32]], dict[int, GrammarError]]:
        """Masks of the row behind the answer (offset 0), and of drafted rows (offset i + 1 for nodes[i]).

        Args:
            answer: The tokens behind the prompt.
            nodes: (token, offset of its parent); parents come before children.

        Returns:
            By offset: [ceil(vocab / 32)] uint32, and instead of it the reason where the grammar's limits were reached.
        """
        masks: dict[int, NDArray[np.uint32]] = {}
        errors: dict[int, GrammarError] = {}
        children: dict[int, list[tuple[int, int]]] = {}
        for offset, (token, parent) in enumerate(nodes, 1):
            children.setdefault(parent, []).append((offset, token))
        try:
            self.follow(answer)
        except GrammarError as error:
            return {}, {0: error}
        self._visit(0, children, masks, errors)
        if self._matcher.is_error():
            # It never leaves that state; a draft must not cost the answer its matcher.
            self._matcher, self._length = self._start.deep_copy(), 0
        return masks, errors

    def _visit(
        self,
        offset: int,
        children: dict[int, list[tuple[int, int]]],
        masks: dict[int, NDArray[np.uint32]],
        errors: dict[int, GrammarError],
    ) -> None:
        mask = np.zeros(self._words, np.uint32)
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error() or not mask.any():
            reason = self._matcher.get_error() or "no token may follow"
            errors[offset] = GrammarError(f"the grammar cannot be followed any further: {reason}")
            return
        masks[offset] = mask
        for child, token in children.get(offset, ()):
            if mask[token // 32] >> (token % 32) & 1 and self._matcher.try_consume_tokens([token]) == 1:
                self._visit(child, children, masks, errors)
                self._matcher.rollback(1)
