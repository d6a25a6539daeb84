"""Paged tree attention against a dense float64 reference; and that exact rows do not depend on their neighbours."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_cloud.kernels.attention import GROUP_ROWS, SPLIT, ExactAttention, GroupedAttention, PagedAttention
from outrider_cloud.kernels.kv import KvPool
from outrider_cloud.kernels.layout import LayerSpec, Segment

SLOTS = 2048


@dataclass(frozen=True)
class Shape:
    """A segment to be made: computed tokens, and the parent row of each row (-1 = the context's last)."""

    context: int
    parents: tuple[int, ...]


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    rows = draw(st.sampled_from([1, 2, 3, 5, GROUP_ROWS, GROUP_ROWS + 1, 2 * GROUP_ROWS + 3]))
    context = draw(st.sampled_from([0, 1, 7, SPLIT - 2, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT - 1, 150]))
    parents = draw(st.one_of(st.just(list(range(-1, rows - 1))), trees(rows)))
    if context == 0:
        parents = [-1, *(max(0, parent) for parent in parents[1:])]
    return Shape(context, tuple(parents))


def trees(rows: int) -> st.SearchStrategy[list[int]]:
    return st.tuples(*(st.integers(-1, row - 1) for row in range(rows))).map(list)


@st.composite
def specs(draw: st.DrawFn) -> LayerSpec:
    kv_heads, share = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 4]))
    return LayerSpec(
        q_heads=kv_heads * share,
        kv_heads=kv_heads,
        k_dim=draw(st.sampled_from([4, 16])),
        v_dim=draw(st.sampled_from([4, 8, 16])),
        scale=draw(st.sampled_from([0.25, 1.0])),
        window=draw(st.sampled_from([None, None, 1, 2, 7, SPLIT, 100])),
        softcap=draw(st.sampled_from([None, None, 1.5])),
        sinks=draw(st.booleans()),
    )


class Case:
    """A pool of random keys and values, segments at scattered slots, and random queries."""

    def __init__(self, made: list[Shape], spec: LayerSpec, seed: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.spec = spec
        self.kv = KvPool([spec], SLOTS, dtype)
        self.kv.keys[0].normal_(generator=generator)
        self.kv.values[0].normal_(generator=generator)
        slots = torch.randperm(SLOTS, generator=generator).numpy()
        self.segments, used = [], 0
        for shape in made:
            end = used + shape.context + len(shape.parents)
            mine = slots[used:end]
            self.segments.append(Segment(mine[: shape.context], mine[shape.context :], list(shape.parents)))
            used = end
        self.rows = sum(len(shape.parents) for shape in made)
        self.query = torch.randn(spec.q_heads, self.rows, spec.k_dim, generator=generator)
        self.sinks = torch.randn(spec.q_heads, generator=generator) if spec.sinks else None

    def attend(self, kernel: PagedAttention, padding: int = 0) -> torch.Tensor:
        return run(kernel, self, self.segments, self.query, padding)

    def key_slots(self, segment: Segment, row: int) -> list[int]:
        """Slots that a row sees, oldest first: context, ancestors, itself."""
        path = []
        while row >= 0:
            path.append(int(segment.slots[row]))
            row = segment.parents[row]
        return [*map(int, segment.context), *path[::-1]]

    def dense(self) -> np.ndarray:
        """[rows, q_heads, v_dim] in float64, one dot product at a time."""
        spec, out, row = self.spec, [], 0
        keys, values = self.kv.keys[0].double().numpy(), self.kv.values[0].double().numpy()
        for segment in self.segments:
            for inside in range(len(segment.parents)):
                slots = self.key_slots(segment, inside)
                slots = slots if spec.window is None else slots[-spec.window :]
                heads = [self._head(head, row, keys, values, slots) for head in range(spec.q_heads)]
                out.append(heads)
                row += 1
        return np.array(out)

    def _head(self, head: int, row: int, keys: np.ndarray, values: np.ndarray, slots: list[int]) -> np.ndarray:
        spec, shared = self.spec, head // (self.spec.q_heads // self.spec.kv_heads)
        scores = keys[shared, slots] @ self.query[head, row].double().numpy() * spec.scale
        if spec.softcap is not None:
            scores = spec.softcap * np.tanh(scores / spec.softcap)
        extra = [] if self.sinks is None else [float(self.sinks[head])]
        weights = np.exp(np.array([*scores, *extra]) - max([*scores, *extra]))
        return (weights[: len(slots)] / weights.sum()) @ values[shared, slots]


def run(
    kernel: PagedAttention, case: Case, segments: list[Segment], query: torch.Tensor, padding: int = 0
) -> torch.Tensor:
    """Attention of these rows, followed by `padding` rows without a segment."""
    rows = query.shape[1]
    padded = torch.cat((query, torch.ones(query.shape[0], padding, query.shape[2])), 1)
    out = kernel.plan(segments, rows + padding).attend(padded, case.kv, 0, case.spec, case.sinks)
    assert out.shape == (rows + padding, case.spec.q_heads, case.spec.v_dim)
    assert bool(out.isfinite().all())
    return out[:rows]


BATCHES = st.lists(shapes(), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32)
KERNELS = pytest.mark.parametrize(
    "kernel", [GroupedAttention(), GroupedAttention(0), ExactAttention()], ids=["grouped", "in parts", "exact"]
)


@KERNELS
@settings(max_examples=120)
@given(made=BATCHES, spec=specs(), seed=SEEDS, padding=st.integers(0, 5))
def test_attention_is_dense_attention(
    kernel: PagedAttention, made: list[Shape], spec: LayerSpec, seed: int, padding: int
):
    case = Case(made, spec, seed)
    np.testing.assert_allclose(case.attend(kernel, padding).numpy(), case.dense(), atol=3e-6, rtol=3e-5)


@KERNELS
def test_attention_over_half_precision_keys_computes_in_float32(kernel: PagedAttention):
    case = Case(
        [Shape(70, (-1, 0, 0, 1))], LayerSpec(4, 2, 16, 8, 0.25, None, None, sinks=False), 3, dtype=torch.bfloat16
    )
    np.testing.assert_allclose(case.attend(kernel).numpy(), case.dense(), atol=3e-6, rtol=3e-5)
    half = kernel.plan(case.segments, case.rows).attend(case.query.bfloat16(), case.kv, 0, case.spec, None)
    assert half.dtype == torch.bfloat16


@KERNELS
def test_a_row_sees_nothing_of_a_neighbour_whose_numbers_are_broken(kernel: PagedAttention):
    """A session whose keys and values are not numbers must not reach another session's rows, not even as padding."""
    spec = LayerSpec(2, 1, 8, 8, 1.0, None, None, sinks=False)
    case = Case([Shape(3, (-1,)), Shape(90, tuple(range(-1, 9)))], spec, 11)
    expected = case.attend(kernel)
    healthy = np.concatenate([case.segments[0].context, case.segments[0].slots])
    broken = np.setdiff1d(np.arange(SLOTS), healthy)
    case.kv.keys[0][:, broken] = torch.nan
    case.kv.values[0][:, broken] = torch.nan
    got = kernel.plan(case.segments, case.rows).attend(case.query, case.kv, 0, spec, None)
    assert torch.equal(got[:1], expected[:1])
    assert bool(got[1:].isnan().all())


def alone(case: Case, segment: Segment, row: int) -> tuple[Segment, list[int]]:
    """A segment of one row that sees what row `row` of `segment` sees."""
    slots = case.key_slots(segment, row)
    return Segment(np.array(slots[:-1], np.int64), np.array(slots[-1:], np.int64), [-1]), slots


@settings(max_examples=80)
@given(made=BATCHES, spec=specs(), seed=SEEDS, data=st.data())
def test_exact_rows_have_the_same_bits_alone_and_in_any_batch(
    made: list[Shape], spec: LayerSpec, seed: int, data: st.DataObject
):
    case, kernel = Case(made, spec, seed), ExactAttention()
    together = case.attend(kernel, data.draw(st.integers(0, 9)))
    order = data.draw(st.permutations(range(len(made))))
    starts = np.cumsum([0, *(len(shape.parents) for shape in made)])
    rows = [row for s in order for row in range(starts[s], starts[s + 1])]
    shuffled = run(kernel, case, [case.segments[s] for s in order], case.query[:, rows])
    assert torch.equal(shuffled, together[rows])
    place = data.draw(st.integers(0, case.rows - 1))
    owner = int(np.searchsorted(starts, place, side="right")) - 1
    single, _ = alone(case, case.segments[owner], place - int(starts[owner]))
    for padding in (0, 1, 15):
        assert torch.equal(run(kernel, case, [single], case.query[:, [place]], padding)[0], together[place])


@settings(max_examples=40)
@given(spec=specs(), seed=st.integers(0, 2**32), length=st.integers(2, 150), chunk=st.integers(1, 40))
def test_exact_prefill_has_the_same_bits_in_chunks_of_any_size(spec: LayerSpec, seed: int, length: int, chunk: int):
    case, kernel = Case([Shape(0, tuple(range(-1, length - 1)))], spec, seed), ExactAttention()
    whole, slots = case.attend(kernel), case.segments[0].slots
    for start in range(0, length, chunk):
        part = slots[start : start + chunk]
        segment = Segment(slots[:start], part, list(range(-1, len(part) - 1)))
        assert torch.equal(
            run(kernel, case, [segment], case.query[:, start : start + chunk]), whole[start : start + chunk]
        )


@given(shapes())
def test_layout_agrees_with_the_parents(shape: Shape):
    """Depths, ancestors and path slots of a segment are three views of one tree."""
    rows = len(shape.parents)
    segment = Segment(np.arange(shape.context), 1000 + np.arange(rows), list(shape.parents))
    paths = []
    for row, parent in enumerate(shape.parents):
        paths.append([row] if parent < 0 else [*paths[parent], row])
    assert segment.depths() == [len(path) - 1 for path in paths]
    assert segment.ancestors().tolist() == [[column in path for column in range(rows)] for path in paths]
    assert [segment.path_slots(row) for row in range(rows)] == [[1000 + r for r in path] for path in paths]
    assert segment.is_chain() == all(path == list(range(len(path))) for path in paths)
