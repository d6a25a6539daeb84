"""Slots know what each of them may see, after any history."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from outrider_shared.drafting.slots import MASKED, Slots
from outrider_shared.errors import DraftError


class History(RuleBasedStateMachine):
    """Slots against sets: `seen[slot]` is all that a slot sees, itself included."""

    @initialize(count=st.integers(1, 5))
    def begin(self, count: int):
        self.slots = Slots()
        self.slots.append_chain(count)
        self.seen = [frozenset(range(slot + 1)) for slot in range(count)]

    @rule(count=st.integers(1, 3))
    def chain(self, count: int):
        self.slots.append_chain(count)
        for _ in range(count):
            self.seen.append((self.seen[-1] if self.seen else frozenset()) | {len(self.seen)})

    @rule(data=st.data(), count=st.integers(1, 4))
    def tree(self, data: st.DataObject, count: int):
        if not self.seen:
            return
        parents = []
        for _ in range(count):
            parents.append(data.draw(st.integers(0, len(self.seen) - 1)))
            self.seen.append(self.seen[parents[-1]] | {len(self.seen)})
        self.slots.append_tree(parents)

    @rule(data=st.data())
    def rewind(self, data: st.DataObject):
        length = data.draw(st.integers(0, len(self.seen)))
        self.slots.rewind(length)
        del self.seen[length:]

    @rule(data=st.data())
    def compact(self, data: st.DataObject):
        base = data.draw(st.integers(0, len(self.seen)))
        wish = data.draw(st.sets(st.integers(base, len(self.seen)), max_size=5))
        kept = sorted({slot for end in wish if end < len(self.seen) for slot in self.seen[end] if slot >= base})
        self.slots.compact(base, kept)
        moved = {**{slot: slot for slot in range(base)}, **{old: new for new, old in enumerate(kept, base)}}
        self.seen = [frozenset(moved[slot] for slot in self.seen[old]) for old in [*range(base), *kept]]

    @rule(data=st.data())
    def refused(self, data: st.DataObject):
        before = (list(self.slots.parents), list(self.slots.positions), self.slots.trunk)
        wrong = data.draw(st.sampled_from([-1, len(self.seen) + 1]))
        for change in (
            lambda: self.slots.append_tree([max(0, len(self.seen) - 1), wrong + 1 if wrong > 0 else wrong]),
            lambda: self.slots.rewind(wrong),
            lambda: self.slots.compact(0, [wrong]),
        ):
            with pytest.raises(DraftError):
                change()
        assert before == (self.slots.parents, self.slots.positions, self.slots.trunk)

    @invariant()
    def the_mask_shows_what_is_seen(self):
        if not hasattr(self, "seen"):
            return
        length = len(self.seen)
        bias = np.full((length, length), 5, np.float32)
        self.slots.fill_bias(bias)
        wanted = [[0 if slot in seen else MASKED for slot in range(length)] for seen in self.seen]
        # The kernel itself hides later slots from earlier ones; the mask need not.
        assert np.array_equal(np.tril(bias), np.tril(np.array(wanted, np.float32).reshape(length, length)))
        assert self.slots.positions == [len(seen) - 1 for seen in self.seen]

    @invariant()
    def a_chain_is_known_to_be_one(self):
        """Without it a text would pay for a mask for ever after one branch."""
        if hasattr(self, "seen"):
            assert self.slots.is_chain == all(len(seen) == slot + 1 for slot, seen in enumerate(self.seen))


TestHistory = History.TestCase
