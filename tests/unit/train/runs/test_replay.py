"""Learning from what fleets reported: which places, from whom, and that it helps there."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from outrider_cloud.engine.events import Refused
from outrider_cloud.model.loading import fingerprint
from outrider_cloud.model.weights import Weights
from outrider_cloud.replay import store as stores
from outrider_cloud.replay.records import Record
from outrider_cloud.train.cli import train
from outrider_cloud.train.distil.distillation import DistilConfig
from outrider_cloud.train.distil.samples import Writing, write_texts
from outrider_cloud.train.loop.config import FitConfig
from outrider_cloud.train.loop.fit import Fit
from outrider_cloud.train.loop.world import World
from outrider_cloud.train.runs.replay import ReplayRun, verdict
from outrider_cloud.train.settings import DataConfig, ReplayRecipe, read_recipe
from outrider_cloud.train.texts.reported import ReplayConfig, ReportedSource, windows
from outrider_shared.errors import ConfigError, MismatchError
from outrider_shared.packs import read_pack, tokenizer_fingerprint
from unit.train.toys import toy_model, write_folder

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = [[5 + n % 90, 7, 9 + n // 90] for n in range(180)]
CONFIG = ReplayConfig(share=0.5, others=0.25)


@st.composite
def records(draw: st.DrawFn) -> Record:
    size = draw(st.integers(2, 120))
    answer = draw(st.integers(1, size - 1))
    places = draw(st.sets(st.integers(answer, size - 1), min_size=1))
    return Record(tuple(range(size)), answer, tuple(Refused(place, (0,)) for place in sorted(places)), 0.7)


@given(record=records(), longest=st.integers(8, 64), others=st.sampled_from([0.0, 0.25, 1.0]))
def test_every_refused_place_is_learned_once_behind_enough_text(record: Record, longest: int, others: float):
    """Tokens are their own places here, so what is learned can be told from the windows alone."""
    learned: list[int] = []
    for example in windows(record, longest, others, seed=3):
        assert len(example.ids) <= longest
        places = example.ids[example.learn]
        assert example.ids[0] == 0 or places[0] - example.ids[0] >= longest - longest // 2
        learned += places.tolist()
    assert len(learned) == len(set(learned))
    assert {each.position for each in record.refused} <= set(learned)
    assert min(learned) >= record.answer_start
    if others == 1:
        assert sorted(learned) == list(range(record.answer_start, len(record.tokens)))
    if others == 0:
        assert len(learned) == len(record.refused)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a draft that knows nothing of it, and the draft's work folder as `outrider train draft` leaves it."""
    room = tmp_path_factory.mktemp("room")
    write_folder(toy_model(0, hidden=32), room / "target")
    write_folder(toy_model(5), room / "draft.pack.work" / "draft")
    report(room, room / "store", PROMPTS)
    return room


def kind(room: Path, weights: Weights = Weights.NATIVE) -> stores.Kind:
    target = room / "target"
    tokenizer = tokenizer_fingerprint((target / "tokenizer.json").read_bytes())
    return stores.Kind(fingerprint(target, weights), tokenizer, 300, "target")


@torch.no_grad()
def report(room: Path, folder: Path, prompts: list[list[int]], of: stores.Kind | None = None) -> None:
    """What a cloud would keep: the target's answers, and the places where the draft would have chosen otherwise."""
    target, draft = toy_model(0, hidden=32).eval(), toy_model(5).eval()
    texts = write_texts(target, prompts, {1}, Writing((0.0,), most=12, longest=40), seed=1)
    store = stores.ReplayStore(stores.ReplayConfig(folder), of or kind(room))
    for prompt, text in zip(prompts, texts, strict=True):
        chosen = draft(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()
        wrong = [i for i, (one, other) in enumerate(zip(chosen, text, strict=True)) if one != other]
        if wrong:
            refused = tuple(Refused(len(prompt) + i, (chosen[i],)) for i in wrong)
            store.append(Record(tuple(prompt + text), len(prompt), refused, 0.0))
    store.close()


RECIPE = ReplayRecipe(
    DataConfig(source="nothing", longest=64),
    CONFIG,
    DistilConfig(loss="forward-kl", prompts=48, top_k=16, tokens_per_batch=400, writing=Writing((1.0,), most=12)),
    FitConfig(30, warmup_steps=2, validate_every=30, checkpoint_every=1),
)


def source(room: Path, store: Path | None = None, *, skip_others: bool = False) -> ReportedSource:
    return ReportedSource(store or room / "store", room / "target", CONFIG, 64, skip_others)


def make(room: Path, work: Path, **changes: Any) -> ReplayRun:
    before = room / "draft.pack.work"
    run = ReplayRun(
        room / "target", before / "draft", before, RECIPE, (), source(room), work, World(), say=lambda _: None
    )
    return replace(run, **changes)


def test_the_command_brings_the_draft_to_what_was_reported_and_leaves_no_texts(room: Path, tmp_path: Path):
    recipe = tmp_path / "replay.toml"
    recipe.write_text(
        'precision = "fp32"\n[data]\nsource = "nothing"\nlongest = 64\n[distil]\nloss = "mix"\nprompts = 48\n'
        "tokens_per_batch = 400\nwriting = { temperatures = [1.0], most = 12 }\n"
        "[fit]\nsteps = 60\nwarmup_steps = 2\nvalidate_every = 30\n"
    )
    out = tmp_path / "better.pack"
    told = CliRunner().invoke(
        train,
        ["replay", "--target", str(room / "target"), "--pack", str(room / "draft.pack"), "--store", str(room / "store"),
         "--config", str(recipe), "--out", str(out), "--json"],
        catch_exceptions=False,
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    figures = json.loads(told.stdout.splitlines()[-1])
    assert figures["after"]["valid"] < figures["before"]["valid"] / 2
    assert {"valid", "kl", "valid_elsewhere", "kl_elsewhere"} <= set(figures["after"])
    assert read_pack(out).manifest.name == "better.pack"
    assert not list((tmp_path / "better.pack.work").glob("reported*"))


def test_a_run_that_was_cut_off_goes_on_with_the_texts_that_it_had(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The store goes on growing meanwhile; the weights are those of a run that was not cut off."""
    whole, cut = make(room, tmp_path / "whole"), make(room, tmp_path / "cut")
    whole.run()
    step = Fit.train_step

    def stopped(fit: Fit) -> tuple[float, int]:
        if fit.step == 11:
            raise KeyboardInterrupt
        return step(fit)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "train_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            cut.run()
    grown = tmp_path / "grown"
    report(room, grown, [[200 + n % 50, 8, 9] for n in range(40)])
    before = source(room).count().records
    for path in grown.glob("*.replay"):
        path.rename(room / "store" / f"{900:012d}.replay")
    assert source(room).count().records > before
    cut.run()
    (room / "store" / f"{900:012d}.replay").unlink()
    wanted, found = (torch.load(run.work / "checkpoint.pt")["model"] for run in (whole, cut))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_draft_whose_old_texts_are_nowhere_is_not_trained_on_the_new_ones_alone(room: Path, tmp_path: Path):
    files = replace(RECIPE, data=DataConfig(longest=64))
    with pytest.raises(ConfigError, match=r"work holds no samples of .*target.*--set data\.source=nothing"):
        make(room, tmp_path / "work", recipe=files).run()
    assert not (tmp_path / "work").exists()


def test_a_draft_that_is_not_better_is_told():
    before = {"valid": 0.2, "valid_elsewhere": 0.03}
    assert verdict(before, {"valid": 0.1, "valid_elsewhere": 0.04}) == ""
    assert "more is lost elsewhere" in verdict(before, {"valid": 0.19, "valid_elsewhere": 0.06})
    assert "keep the pack" in verdict(before, {"valid": 0.2, "valid_elsewhere": 0.01})


def test_what_another_target_refused_is_not_learned(room: Path, tmp_path: Path):
    store = tmp_path / "store"
    report(room, store, PROMPTS[:6], stores.Kind("ab" * 32, kind(room).tokenizer, 300, "other"))
    with pytest.raises(MismatchError, match=r"drafts that other \(abababababab\) refused.*--skip-others"):
        source(room, store).count()
    with pytest.raises(ConfigError, match="no refused drafts of this target"):
        source(room, store, skip_others=True).count()
    report(room, store, PROMPTS[:9])
    counted = source(room, store, skip_others=True).count()
    assert (counted.records, counted.others) == (9, 6)


def test_a_target_held_in_int8_is_the_same_target(room: Path, tmp_path: Path):
    report(room, tmp_path / "store", PROMPTS[:6], kind(room, Weights.INT8))
    assert source(room, tmp_path / "store").count().records == 6


def test_held_out_answers_stay_held_out_when_the_store_grows(room: Path):
    learned, held = ({tuple(e.ids.tolist()) for e in source(room).examples(held=h)} for h in (False, True))
    assert held
    assert not learned & held
    few = replace(source(room), config=replace(CONFIG, held_out=1 / 64))
    assert {tuple(e.ids.tolist()) for e in few.examples(held=True)} <= held
    answers = [np.flatnonzero(e.learn) for e in source(room).examples(held=True)]
    assert all(len(places) == places[-1] - places[0] + 1 for places in answers)


def test_too_little_traffic_is_told(room: Path, tmp_path: Path):
    report(room, tmp_path / "store", PROMPTS[:1])
    with pytest.raises(ConfigError, match="too little traffic"):
        make(room, tmp_path / "work", source=source(room, tmp_path / "store")).run()


def test_the_recipe_that_ships_is_read():
    assert read_recipe(ReplayRecipe, "replay", {"replay.share": 0.3}).replay.share == 0.3
    with pytest.raises(ConfigError, match="share 0"):
        read_recipe(ReplayRecipe, "replay", {"replay.share": 0.0})
