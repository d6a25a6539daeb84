"""The draft runtime computes what transformers computes, whatever was appended, rewound or compacted before."""

import dataclasses
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from outrider_cloud.pack import export
from outrider_cloud.pack.export import Request, export_pack
from outrider_shared.drafting import runtime as runtime_module
from outrider_shared.drafting.runtime import MAX_ROWS, DraftModel, DraftRuntime
from outrider_shared.errors import ConfigError, DraftError, InternalError, PackError
from outrider_shared.packs import Precision, describe_files, read_pack, write_manifest
from unit.pack.tiny import CONFIGS, VOCAB, write_hollow_pack, write_model

CONTEXT = 192
PROMPT = [7, 300, 41, 5, 99, 120, 3, 250, 18, 64]
# Nodes of a draft tree below the prompt (slots 0..9): (parent slot, token); a, b and their descendants.
TREE = [(9, 30), (9, 31), (10, 32), (10, 33), (11, 34), (13, 35)]

Reference = Callable[[list[int]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A draft model, and the same model in transformers: token ids -> logits [len, vocab]."""

    draft: DraftModel
    reference: Reference


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def pair(kind: str) -> Pair:
        if kind not in made:
            folder = tmp_path_factory.mktemp("draft")
            write_model(folder / "model", CONFIGS[kind])
            pack = export_pack(Request(folder / "model", folder / "pack", Precision.FP32))
            model = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager").eval()

            def reference(tokens: list[int]) -> np.ndarray:
                with torch.no_grad():
                    return model(torch.tensor([tokens])).logits[0].numpy()

            made[kind] = Pair(DraftModel.load(pack), reference)
        return made[kind]

    return pair


@pytest.fixture
def pair(pair_of: Callable[[str], Pair]) -> Pair:
    return pair_of("tied")


@pytest.fixture
def runtime(pair: Pair) -> DraftRuntime:
    return pair.draft.new_runtime()


def path_to(slot: int) -> list[int]:
    """The tokens from the start of the prompt to a slot of `TREE`."""
    if slot < len(PROMPT):
        return PROMPT[: slot + 1]
    parent, token = TREE[slot - len(PROMPT)]
    return [*path_to(parent), token]


def tree_logits(reference: Reference) -> np.ndarray:
    return np.stack([reference(path_to(len(PROMPT) + i))[-1] for i in range(len(TREE))])


def close(got: np.ndarray, want: np.ndarray) -> bool:
    return got.shape == want.shape and bool(np.abs(got - want).max() < 1e-4)


def columns(nodes: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [token for _, token in nodes], [parent for parent, _ in nodes]


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_chain_is_computed_as_transformers_does(pair_of: Callable[[str], Pair], kind: str):
    """Prefill, append and rewind, for every architecture."""
    pair = pair_of(kind)
    runtime = pair.draft.new_runtime()
    assert close(runtime.prefill(PROMPT), pair.reference(PROMPT)[-1:])
    assert close(runtime.forward([1, 2, 3]), pair.reference([*PROMPT, 1, 2, 3])[-3:])
    runtime.rewind(11)
    assert close(runtime.forward([8, 9]), pair.reference([*PROMPT, 1, 8, 9])[-2:])
    assert runtime.length == 13


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_tree_is_computed_as_its_root_paths_are(pair_of: Callable[[str], Pair], kind: str):
    """In one pass, and level by level."""
    pair = pair_of(kind)
    want = tree_logits(pair.reference)
    runtime = pair.draft.new_runtime()
    runtime.prefill(PROMPT)
    assert close(runtime.forward(*columns(TREE)), want)
    runtime.rewind(len(PROMPT))
    levels = [runtime.forward(*columns(TREE[a:b])).copy() for a, b in ((0, 2), (2, 5), (5, 6))]
    assert close(np.concatenate(levels), want)


def test_a_committed_branch_that_is_not_the_first_is_kept_without_computing(pair: Pair, runtime: DraftRuntime):
    runtime.prefill(PROMPT)
    runtime.forward(*columns(TREE))
    runtime.compact(10, [10, 13, 15])
    assert runtime.length == 13
    assert close(runtime.forward([77]), pair.reference([*path_to(15), 77])[-1:])


def test_what_hangs_below_a_committed_node_may_be_kept_with_it(pair: Pair, runtime: DraftRuntime):
    runtime.prefill(PROMPT)
    runtime.forward(*columns(TREE))
    runtime.compact(10, [10, 12, 13])  # 30 with both its children, now in slots 10, 11, 12
    assert close(runtime.forward([35], [12]), pair.reference(path_to(15))[-1:])
    assert close(runtime.forward([40], [11]), pair.reference([*path_to(12), 40])[-1:])


def test_rewinding_a_tree_to_its_trunk_leaves_a_chain(pair: Pair, runtime: DraftRuntime):
    runtime.prefill(PROMPT)
    runtime.forward(*columns(TREE))
    runtime.rewind(11)
    assert close(runtime.forward([50, 51]), pair.reference([*path_to(10), 50, 51])[-2:])


def test_a_chain_below_a_branch_sees_that_branch_only(pair: Pair, runtime: DraftRuntime):
    runtime.prefill(PROMPT)
    runtime.forward(*columns(TREE[:2]))
    assert close(runtime.forward([60, 61]), pair.reference([*path_to(11), 60, 61])[-2:])


def test_only_the_asked_rows_are_projected(pair: Pair, runtime: DraftRuntime):
    want = pair.reference(PROMPT)
    assert close(runtime.forward(PROMPT, rows=(9, 2)), want[[9, 2]])
    runtime.rewind(0)
    assert close(runtime.forward(PROMPT), want)


def test_arrays_are_as_good_as_lists(pair: Pair, runtime: DraftRuntime):
    assert close(runtime.forward(np.array(PROMPT)), pair.reference(PROMPT))


def test_a_long_prompt_goes_in_several_passes(pair: Pair, runtime: DraftRuntime, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime_module, "MAX_ROWS", 16)
    prompt = [(13 * i) % VOCAB for i in range(100)]
    assert close(runtime.prefill(prompt), pair.reference(prompt)[-1:])
    assert runtime.length == 100


def test_the_whole_capacity_can_be_used(pair: Pair, runtime: DraftRuntime):
    tokens = [(11 * i) % VOCAB for i in range(CONTEXT)]
    assert close(runtime.prefill(tokens), pair.reference(tokens)[-1:])
    with pytest.raises(DraftError, match="1 tokens after 192 exceed the draft's capacity of 192"):
        runtime.forward([1])


def test_sessions_on_one_model_do_not_see_each_other(pair: Pair):
    one, two = pair.draft.new_runtime(), pair.draft.new_runtime(capacity=32)
    one.prefill(PROMPT)
    two.prefill(PROMPT[::-1])
    assert close(one.forward([5]), pair.reference([*PROMPT, 5])[-1:])
    assert close(two.forward([5]), pair.reference([*PROMPT[::-1], 5])[-1:])
    assert (one.capacity, two.capacity) == (CONTEXT, 32)


def test_sessions_may_run_in_threads(pair: Pair):
    texts = [[(7 * i * (seed + 1)) % VOCAB for i in range(40)] for seed in range(6)]
    wanted = [pair.reference(tokens) for tokens in texts]

    def session(seed: int) -> bool:
        runtime = pair.draft.new_runtime()
        return close(np.stack([runtime.forward([token])[0].copy() for token in texts[seed]]), wanted[seed])

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(session, range(6)))


@pytest.mark.parametrize("seed", range(6))
def test_any_history_gives_the_logits_of_the_root_path(pair: Pair, seed: int):
    """Random chains, trees, rewinds and compactions, against transformers on the path of each row."""
    generator, runtime = random.Random(seed), pair.draft.new_runtime(64)
    paths = [(7,)]  # of each slot; no two are equal
    runtime.forward([7])
    for _ in range(25):
        action = generator.choice(("chain", "tree", "tree", "rewind", "compact"))
        if action in {"chain", "tree"} and len(paths) < 50:
            parents, tokens = [], []
            for _ in range(generator.randint(1, 4)):
                parent = (
                    len(paths) - 1 if action == "chain" else generator.randrange(max(0, len(paths) - 9), len(paths))
                )
                free = [token for token in range(VOCAB) if (*paths[parent], token) not in paths]
                parents.append(parent)
                tokens.append(generator.choice(free))
                paths.append((*paths[parent], tokens[-1]))
            got = runtime.forward(tokens, None if action == "chain" else parents)
            assert close(got, np.stack([pair.reference(list(path))[-1] for path in paths[-len(tokens) :]]))
        elif action == "rewind":
            paths = paths[: generator.randint(max(1, len(paths) - 4), len(paths))]
            runtime.rewind(len(paths))
        elif action == "compact":
            base, chosen = max(1, len(paths) - 6), generator.choice(paths)
            # The branch of the chosen slot: what is above it and what is below it.
            related = [path for path in paths[base:] if path == chosen[: len(path)] or chosen == path[: len(chosen)]]
            runtime.compact(base, [paths.index(path) for path in related])
            paths = [*paths[:base], *related]
        assert runtime.length == len(paths)


REFUSED = {
    "no tokens": (([],), "from 1 to 256 tokens, not 0"),
    "too many for a pass": (([1] * (MAX_ROWS + 1),), "not 257"),
    "token above the vocabulary": (([1, VOCAB],), r"draft tokens \[1, 320\] are not all from 0 to 319"),
    "negative token": (([-1],), "not all from 0 to 319"),
    "row above": (([1], None, [1]), "rows .1. are not all from 0 to 0"),
    "negative row": (([1], None, [-1]), "rows .-1."),
    "no rows": (([1], None, []), "rows"),
    "parents missing": (([1, 2], [9]), "1 parents for 2 tokens"),
    "parent after its child": (([1, 2], [9, 11]), "slot 11 names slot 11 as its parent; it must be from 0 to 10"),
    "negative parent": (([1], [-1]), "slot -1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_pass_out_of_bounds_is_refused_and_changes_nothing(pair: Pair, runtime: DraftRuntime, case: str):
    arguments, message = REFUSED[case]
    runtime.prefill(PROMPT)
    with pytest.raises(DraftError, match=message):
        runtime.forward(*arguments)
    assert close(runtime.forward([5]), pair.reference([*PROMPT, 5])[-1:])


def test_a_tree_needs_a_slot_above_it(runtime: DraftRuntime):
    with pytest.raises(DraftError, match="needs a slot above it"):
        runtime.forward([1, 2], [0, 0])


def test_a_prompt_over_the_capacity_is_refused_before_its_first_pass(pair: Pair):
    runtime = pair.draft.new_runtime(capacity=20)
    with pytest.raises(DraftError, match="not 21"):
        runtime.prefill([1] * 21)
    assert runtime.length == 0


def test_rewinding_and_compacting_know_their_bounds(runtime: DraftRuntime):
    runtime.prefill(PROMPT)
    for length in (-1, 11):
        with pytest.raises(DraftError, match="cannot rewind"):
            runtime.rewind(length)
    for base, kept in ((4, [6, 5]), (4, [3]), (4, [10]), (11, []), (4, [4, 6])):
        with pytest.raises(DraftError, match="cannot keep slots"):
            runtime.compact(base, kept)
    assert runtime.length == 10


def test_a_fault_of_onnx_runtime_is_ours_and_changes_nothing(
    pair: Pair, runtime: DraftRuntime, monkeypatch: pytest.MonkeyPatch
):
    class Broken:
        def run_with_iobinding(self, _binding: object) -> None:
            raise RuntimeError("out of luck")

    runtime.prefill(PROMPT)
    with monkeypatch.context() as patch:
        patch.setattr(pair.draft, "session", Broken())
        with pytest.raises(InternalError, match="failed at slot 10: out of luck"):
            runtime.forward([5])
    assert close(runtime.forward([5]), pair.reference([*PROMPT, 5])[-1:])


def test_bad_settings_are_refused(pair: Pair):
    with pytest.raises(ConfigError, match="at least one thread, not 0"):
        DraftModel.load(pair.draft.pack, threads=0)
    for capacity in (0, -3, CONTEXT + 1):
        with pytest.raises(ConfigError, match=f"capacity {capacity} is not from 1 to .* 192"):
            pair.draft.new_runtime(capacity)


def test_weights_beside_the_graph_are_loaded(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export, "_ONE_FILE_BYTES", 1000)
    write_model(tmp_path / "model", CONFIGS["tied"])
    pack = export_pack(Request(tmp_path / "model", tmp_path / "pack", Precision.FP32))
    assert close(DraftModel.load(pack.path).new_runtime().forward(PROMPT), pair.reference(PROMPT))


def test_a_pack_that_is_whole_but_no_model_is_a_pack_error(tmp_path: Path):
    with pytest.raises(PackError, match=r"ONNX Runtime .* cannot load .*model\.onnx"):
        DraftModel.load(write_hollow_pack(tmp_path / "hollow"))


@pytest.mark.parametrize(("field", "value"), [("layers", 3), ("head_dim", 8), ("vocab_size", 400), ("kv_heads", 1)])
def test_a_graph_that_is_not_what_its_manifest_says_is_a_pack_error(pair: Pair, tmp_path: Path, field: str, value: int):
    folder, manifest = tmp_path / "pack", pair.draft.manifest
    folder.mkdir()
    for name in manifest.files:
        (folder / name).write_bytes((pair.draft.pack.path / name).read_bytes())
    shape = dataclasses.replace(manifest.architecture, **{field: value})
    write_manifest(folder, dataclasses.replace(manifest, architecture=shape, files=describe_files(folder)))
    with pytest.raises(PackError, match="its manifest"):
        DraftModel.load(read_pack(folder))
