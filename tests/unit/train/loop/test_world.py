"""Several processes train as one does, with the same batches a step."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from outrider_cloud.train.loop.config import FitConfig
from outrider_cloud.train.loop.fit import Fit, FitError
from outrider_cloud.train.loop.losses import text_loss
from outrider_cloud.train.loop.world import World
from outrider_cloud.train.texts.course import ShardCourse
from outrider_cloud.train.texts.shards import Shard, ShardWriter
from outrider_cloud.train.texts.sources import FileSource
from unit.train.toys import toy_model, toy_tokenizer, write_texts

FIT = FitConfig(
    50,
    warmup_steps=5,
    log_every=1,
    validate_every=60,
    checkpoint_every=60,
    micro_batches=4,
)
_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from unit.train.loop.test_world import train
from outrider_cloud.train.loop.world import joined

with joined() as world:
    train(Path(sys.argv[1]), world)
"""


def train(folder: Path, world: World) -> torch.nn.Module:
    model = toy_model(3)
    course, config = ShardCourse(Shard(folder / "texts"), 300, 1), replace(FIT, micro_batches=5)
    Fit(model, course, text_loss, config, folder / str(world.size), world=world).run()
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = FileSource((write_texts(tmp_path / "texts.jsonl", 150),), toy_tokenizer())
    with ShardWriter(tmp_path / "texts", 300, "toy") as writer:
        writer.add_all(source.examples(0), 0.0)
    return tmp_path


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one_does(folder: Path):
    """torchrun with gloo, Muon and bfloat16 as by default: the loss of each of 50 steps within 1e-5, the same weights.

    Five batches a step, so that the halves are not alike.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    tests = str(Path(__file__).resolve().parents[3])
    (folder / "run.py").write_text(_RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "2", str(folder / "run.py"), str(folder), tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = train(folder, World())
    finally:
        torch.set_num_threads(threads)
    one, two = losses(folder / "1"), losses(folder / "2")
    assert len(one) == len(two) == 50
    assert two == pytest.approx(one, abs=1e-5)
    assert one[-1] < one[0] - 1
    together = torch.load(folder / "2" / "checkpoint.pt")["model"]
    for name, value in alone.state_dict().items():
        assert torch.equal(together[name], value), name


def test_four_small_batches_are_one_large_batch(folder: Path):
    """Gradient accumulation: each batch counts by its learned tokens, not as a quarter."""
    course = ShardCourse(Shard(folder / "texts"), 300, 1)
    model = toy_model(3)
    fit = Fit(model, course, text_loss, FIT, folder / "fit")
    fit._backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    batches = [course.batch(step) for step in range(4)]
    weights = [float(batch.weight[:, 1:].sum()) for batch in batches]
    for batch, weight in zip(batches, weights, strict=True):
        (text_loss(model, batch) * weight / sum(weights)).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=1e-6), name


def test_more_processes_than_batches_are_refused(folder: Path):
    with pytest.raises(FitError, match="too few for 8 processes"):
        Fit(toy_model(0), ShardCourse(Shard(folder / "texts"), 300, 1), text_loss, FIT, folder, world=World(0, 8))


def test_a_run_ends_when_validation_no_longer_gets_better(folder: Path):
    """And has the weights of its best validation."""
    told = iter([3.0, 2.0, 2.5, 2.4, 1.0])
    seen: list[dict[str, torch.Tensor]] = []

    def validate(model: torch.nn.Module) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"valid": next(told)}

    config = replace(FIT, validate_every=3, patience=2)
    model = toy_model(3)
    fit = Fit(model, ShardCourse(Shard(folder / "texts"), 300, 1), text_loss, config, folder / "fit", validate)
    fit.run()
    assert fit.stopped
    assert fit.step == 12
    assert all(torch.equal(value, seen[1][name]) for name, value in model.state_dict().items())


def test_watching_a_figure_that_nobody_tells_is_refused(folder: Path):
    config = replace(FIT, validate_every=1, patience=1, watch="luck")
    course = ShardCourse(Shard(folder / "texts"), 300, 1)
    with pytest.raises(FitError, match="luck"):
        Fit(toy_model(0), course, text_loss, config, folder / "fit", lambda _: {"valid": 1.0}).run()
