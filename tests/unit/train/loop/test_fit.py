"""The loop: it learns, it resumes exactly, it refuses what does not fit."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from outrider_cloud.train.loop.config import FitConfig
from outrider_cloud.train.loop.fit import Fit, FitError
from outrider_cloud.train.loop.losses import text_loss
from outrider_cloud.train.texts.chat import encode_chats
from outrider_cloud.train.texts.corpus import Chat
from outrider_cloud.train.texts.course import ShardCourse
from outrider_cloud.train.texts.shards import Shard, ShardWriter
from outrider_shared.errors import ConfigError, StorageError

MakeTiny = Callable[[int], nn.Module]


@pytest.fixture
def course(chat: Chat, tokenizer: Tokenizer, tmp_path: Path) -> ShardCourse:
    examples = encode_chats(tokenizer, [chat, Chat(chat.messages[:3], "home")], 200)
    with ShardWriter(tmp_path / "texts", tokenizer.get_vocab_size(), "two chats") as writer:
        writer.add_all(examples, 0.2)
    return ShardCourse(Shard(tmp_path / "texts"), 250, seed=0)


def config(steps: int) -> FitConfig:
    return FitConfig(steps, warmup_steps=2, log_every=5, validate_every=10, checkpoint_every=4)


def test_training_lowers_the_loss(course: ShardCourse, make_tiny: MakeTiny, tmp_path: Path):
    model = make_tiny(0)
    before = text_loss(model, course.batch(0)).item()
    Fit(model, course, text_loss, config(40), tmp_path).run()
    assert text_loss(model, course.batch(0)).item() < before - 1


def test_a_resumed_run_equals_an_uninterrupted_one(course: ShardCourse, make_tiny: MakeTiny, tmp_path: Path):
    whole, first, second = make_tiny(0), make_tiny(0), make_tiny(9)
    Fit(whole, course, text_loss, config(13), tmp_path / "a").run()
    Fit(first, course, text_loss, config(13), tmp_path / "b").run(stop_at=7)
    Fit(second, course, text_loss, config(13), tmp_path / "b").run()
    for name, wanted in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], wanted), name


def test_the_log_has_loss_rate_and_validation(course: ShardCourse, make_tiny: MakeTiny, tmp_path: Path):
    fit = Fit(make_tiny(0), course, text_loss, config(10), tmp_path, validate=lambda _: {"valid": 1.5})
    fit.run()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert '"tokens_per_s"' in lines[0]
    assert '"valid": 1.5' in lines[-1]


def test_progress_goes_to_stderr_alone(
    course: ShardCourse, make_tiny: MakeTiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """Standard output is the result's: with --json it holds one object."""
    Fit(make_tiny(0), course, text_loss, config(15), tmp_path).run()
    out, err = capfd.readouterr()
    assert out == ""
    told = [line for line in err.splitlines() if "  loss " in line]
    assert [line.partition("  ")[0] for line in told[:3]] == ["5/15", "10/15", "15/15"]  # no bar in a log: lines
    assert "tokens_per_s" in told[1]
    assert told[1].endswith(" left")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_is_full_at_a_checkpoint_is_told_and_the_last_one_stays(
    course: ShardCourse, make_tiny: MakeTiny, tmp_path: Path
):
    Fit(make_tiny(0), course, text_loss, config(8), tmp_path).run(stop_at=4)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"checkpoint\.pt: No space left on device"):
        Fit(make_tiny(0), course, text_loss, config(8), tmp_path).run()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(course: ShardCourse, make_tiny: MakeTiny, tmp_path: Path):
    Fit(make_tiny(0), course, text_loss, config(4), tmp_path).run()
    other = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(FitError, match="does not fit"):
        Fit(other, course, text_loss, config(4), tmp_path).run()


def test_a_loss_that_is_no_number_stops_the_run(course: ShardCourse, make_tiny: MakeTiny, tmp_path: Path):
    fit = Fit(make_tiny(0), course, lambda model, batch: text_loss(model, batch) * float("nan"), config(4), tmp_path)
    with pytest.raises(FitError, match="step 0"):
        fit.run()


def test_weights_that_are_no_numbers_never_become_a_checkpoint(
    course: ShardCourse, make_tiny: MakeTiny, tmp_path: Path
):
    fit = Fit(make_tiny(0), course, text_loss, config(4), tmp_path)
    fit.save()
    before = fit.checkpoint.read_bytes()
    next(fit.model.parameters()).data[0, 0] = float("inf")
    with pytest.raises(FitError, match="step 0: weights that are no numbers"):
        fit.save()
    assert fit.checkpoint.read_bytes() == before


def test_the_rate_warms_up_stays_and_falls_to_nothing():
    schedule = FitConfig(100, warmup_steps=10, decay_share=0.4)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(30) == 1
    assert schedule.rate(80) == pytest.approx(0.5)
    assert schedule.rate(99) == pytest.approx(0.025)
    with pytest.raises(ValueError, match="no schedule"):
        FitConfig(0)


def test_a_compiled_model_learns_the_same(course: ShardCourse, make_tiny: MakeTiny, tmp_path: Path):
    """In float32 and without Muon, which rounds to bfloat16: the same losses up to the order of sums."""
    if not shutil.which("g++"):
        pytest.skip("torch compiles through g++")
    told = []
    for compile_ in (False, True):
        plain = replace(config(6), optimizer="adamw", bfloat16=False, compile=compile_)
        fit = Fit(make_tiny(0), course, text_loss, plain, tmp_path / str(compile_))
        told.append([fit.train_step()[0] for _ in range(3)])
    assert told[1] == pytest.approx(told[0], rel=1e-4)


def test_no_compiler_is_told_before_the_first_step(
    course: ShardCourse, make_tiny: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match="through g\\+\\+, and there is none"):
        Fit(make_tiny(0), course, text_loss, replace(config(6), compile=True), tmp_path)
