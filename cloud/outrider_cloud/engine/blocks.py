"""KV memory in blocks: allocation, reference counts, and sharing of equal prefixes by hash.

    free      not referenced by any session. It may still hold the KV of a sealed block (the prefix cache): such blocks
              are given away last, least recently released first.
    used      referenced by at least one session; a shared block is counted once.
    sealed    full, and registered under the hash of all tokens up to its end. Its contents never change again.

`free + used == total` holds after every call. The pool knows block numbers only; memory belongs to the platform.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class BlockPool:
    """Blocks of `block_size` tokens.

    Args:
        total: Number of blocks.
        block_size: Tokens in a block.
    """

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        # A secret key: nobody can craft two prefixes of one hash and so read another session's KV.
        self._key = secrets.token_bytes(32)
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(total))
        self._references = [0] * total
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks referenced by sessions."""
        return sum(1 for count in self._references if count)

    @property
    def cached(self) -> int:
        """Free blocks that still hold a sealed prefix."""
        return sum(1 for block in self._free if block in self._hash_of)

    def check(self) -> None:
        """Verify the pool's invariants; an `AssertionError` is a bug of ours."""
        assert self.free + self.used == self.total
        assert all(self._references[block] == 0 for block in self._free)
        assert all(self._block_of[self._hash_of[block]] == block for block in self._hash_of)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has asked `free` first."""
        assert count <= self.free, "allocate without asking"
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
            self._forget(block)
        return blocks

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each; the last one frees the block, deepest first so that prefixes outlive tails."""
        for block in reversed(list(blocks)):
            self._references[block] -= 1
            assert self._references[block] >= 0, "released more often than taken"
            if self._references[block] == 0:
                self._free[block] = None
                self._free.move_to_end(block, last=block in self._hash_of)

    def chain(self, parent: bytes, tokens: Sequence[int]) -> bytes:
        """Hash of a full block, given the hash of everything before it (the scope for the first)."""
        data = parent + b"".join(token.to_bytes(4, "little") for token in tokens)
        return hashlib.blake2b(data, digest_size=16, key=self._key).digest()

    def seal(self, block: int, digest: bytes) -> None:
        """Register a full block; of two with the same contents the first stays registered."""
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def match(self, tokens: Sequence[int], scope: bytes = b"") -> tuple[list[int], list[bytes]]:
        """Take a reference on the longest run of sealed blocks that hold a prefix of `tokens`.

        Args:
            tokens: The log.
            scope: What the chain of hashes begins with; blocks of other scopes are not found.

        Returns:
            The blocks and their hashes, in order.
        """
        blocks, digests, parent = [], [], scope
        for start in range(0, len(tokens) - self.block_size + 1, self.block_size):
            parent = self.chain(parent, tokens[start : start + self.block_size])
            block = self._block_of.get(parent)
            if block is None:
                break
            blocks.append(block)
            digests.append(parent)
        for block in blocks:
            self._references[block] += 1
            self._free.pop(block, None)
        return blocks, digests

    def _forget(self, block: int) -> None:
        digest = self._hash_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
