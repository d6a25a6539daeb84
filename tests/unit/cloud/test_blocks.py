"""KV blocks: counts, sharing, and what is given away first, against a model that knows what every block holds."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outrider_cloud.engine.blocks import BlockPool

SIZE = 2
# Few tokens, so that prefixes meet; lengths that fill blocks and that do not.
TOKENS = st.lists(st.integers(0, 1), max_size=9)


class Table:
    """The blocks of one session of the model."""

    def __init__(self, tokens: list[int], blocks: list[int], shared: int) -> None:
        self.tokens, self.blocks, self.shared = tuple(tokens), blocks, shared


class PoolAgainstContents(RuleBasedStateMachine):
    @initialize(total=st.integers(1, 9))
    def begin(self, total: int) -> None:
        self.pool = BlockPool(total, SIZE)
        self.tables: list[Table] = []
        self.registered: dict[tuple[int, ...], int] = {}  # whole prefix -> block that is known to hold its end
        self.released: dict[int, int] = {}  # free block -> when it was freed
        self.clock = 0

    @rule(tokens=TOKENS)
    def open_a_session(self, tokens: list[int]) -> None:
        """Take the cached prefix, allocate the rest, seal what is full; give all back if there is no room."""
        expected = []
        for end in range(SIZE, len(tokens) + 1, SIZE):
            if tuple(tokens[:end]) not in self.registered:
                break
            expected.append(self.registered[tuple(tokens[:end])])
        blocks, digests = self.pool.match(tokens)
        assert blocks == expected
        assert len(digests) == len(blocks)
        for block in blocks:
            self.released.pop(block, None)
        table = Table(tokens, list(blocks), len(blocks))
        self.tables.append(table)
        missing = -(-len(tokens) // SIZE) - len(blocks)
        if missing > self.pool.free:
            self._release(table)
            return
        table.blocks += self._allocate(missing)
        parent = digests[-1] if digests else b""
        for index in range(len(blocks), len(tokens) // SIZE):
            parent = self.pool.chain(parent, tokens[index * SIZE : (index + 1) * SIZE])
            self.pool.seal(table.blocks[index], parent)
            self.registered.setdefault(tuple(tokens[: (index + 1) * SIZE]), table.blocks[index])

    def _allocate(self, count: int) -> list[int]:
        known = set(self.registered.values())
        blank = [block for block in self._free() if block not in known]
        cached = sorted((b for b in self._free() if b in known), key=lambda block: self.released[block])
        given = self.pool.allocate(count)
        assert len(set(given)) == count
        assert set(given[: len(blank)]) <= set(blank), "a block without contents goes first"
        assert given[len(blank) :] == cached[: max(0, count - len(blank))], "then the least recently released"
        for block in given:
            self.released.pop(block, None)
        self.registered = {tokens: block for tokens, block in self.registered.items() if block not in given}
        return given

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def close_a_session(self, data: st.DataObject) -> None:
        self._release(data.draw(st.sampled_from(self.tables)))

    def _release(self, table: Table) -> None:
        self.tables.remove(table)
        self.pool.release(table.blocks)
        still = {block for other in self.tables for block in other.blocks}
        for block in reversed(table.blocks):
            if block not in still:
                self.clock += 1
                self.released[block] = self.clock

    def _free(self) -> set[int]:
        return set(range(self.pool.total)) - {block for table in self.tables for block in table.blocks}

    @invariant()
    def counts_add_up(self) -> None:
        self.pool.check()
        assert self.pool.free == len(self._free())
        assert self.pool.used == self.pool.total - len(self._free())
        assert self.pool.cached == len(self._free() & set(self.registered.values()))

    @invariant()
    def a_block_is_in_two_tables_only_as_the_same_prefix(self) -> None:
        held: dict[int, tuple[int, ...]] = {}
        for table in self.tables:
            assert len(set(table.blocks)) == len(table.blocks)
            for index, block in enumerate(table.blocks):
                prefix = table.tokens[: (index + 1) * SIZE]
                assert held.setdefault(block, prefix) == prefix
                assert len(prefix) == (index + 1) * SIZE or sum(block in t.blocks for t in self.tables) == 1


TestPool = PoolAgainstContents.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=30)


def filled(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Blocks that were computed and sealed for these tokens."""
    blocks, parent = pool.allocate(len(tokens) // pool.block_size), b""
    for index, block in enumerate(blocks):
        parent = pool.chain(parent, tokens[index * pool.block_size : (index + 1) * pool.block_size])
        pool.seal(block, parent)
    return blocks


def test_a_prefix_outlives_its_tail():
    """The deepest block of a released session is given away first: without its prefix it would be of no use."""
    pool = BlockPool(3, 2)
    first, second, third = filled(pool, [1, 2, 3, 4, 5, 6])
    pool.release([first, second, third])
    assert pool.allocate(1) == [third]
    assert pool.match([1, 2, 3, 4, 5, 6])[0] == [first, second]


def test_the_same_tokens_behind_another_prefix_do_not_match():
    pool = BlockPool(4, 2)
    pool.release(filled(pool, [1, 2, 3, 4]))
    assert pool.match([3, 4])[0] == []
    assert pool.match([9, 9, 3, 4])[0] == []


def test_a_partly_filled_block_does_not_match():
    pool = BlockPool(4, 4)
    pool.release(filled(pool, [1, 2, 3, 4]))
    assert pool.match([1, 2, 3])[0] == []


def test_of_two_blocks_with_the_same_contents_the_first_is_found():
    pool = BlockPool(4, 2)
    first, second = filled(pool, [1, 2]), filled(pool, [1, 2])
    assert first != second
    assert pool.match([1, 2])[0] == first
    pool.check()


def test_hashes_of_two_pools_differ_so_that_nobody_can_craft_them():
    assert BlockPool(1, 2).chain(b"", [1, 2]) != BlockPool(1, 2).chain(b"", [1, 2])


def test_taking_more_than_is_free_or_giving_back_twice_is_our_own_bug():
    pool = BlockPool(2, 2)
    with pytest.raises(AssertionError):
        pool.allocate(3)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError):
        pool.release(blocks)
