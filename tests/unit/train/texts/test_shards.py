"""Texts on disk: they read back, are ordered by the seed alone, and cost no memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outrider_cloud.train.texts.chat import Example
from outrider_cloud.train.texts.course import ShardCourse
from outrider_cloud.train.texts.shards import Shard, ShardWriter, is_finished
from outrider_shared.errors import ConfigError


def example(length: int, first: int) -> Example:
    return Example(np.arange(first, first + length, dtype=np.uint16), np.arange(length) >= length // 2)


def write(folder: Path, count: int, k: int = 0) -> Shard:
    with ShardWriter(folder, 5000, "a test", k) as writer:
        for n in range(count):
            made = example(3 + n % 7, 1 + n)
            learned = int(made.learn[1:].sum())
            top = np.full((learned, k), n, np.uint16), np.full((learned, k), -float(n), np.float32)
            writer.add(made, *(top if k else ()))
    return Shard(folder)


def test_a_shard_reads_back_as_it_was_written(tmp_path: Path):
    shard = write(tmp_path / "s", 20)
    for n in range(20):
        assert shard.example(n).ids.tolist() == list(range(1 + n, 4 + n + n % 7))
        assert not shard.example(n).learn[0]


def test_the_teachers_tokens_lie_beside_the_positions_they_belong_to(tmp_path: Path):
    shard = write(tmp_path / "s", 20, k=2)
    batch = ShardCourse(shard, 60, seed=3).batch(1)
    firsts = batch.ids[:, 0] - 1  # the number of the example, which is also what the teacher said in it
    counts = batch.weight[:, 1:].sum(1).long()
    assert torch.equal(batch.top_ids[:, 0], torch.repeat_interleave(firsts, counts))
    assert torch.equal(batch.top_logs[:, 1], -torch.repeat_interleave(firsts, counts).float())


def test_each_pass_has_every_example_once(tmp_path: Path):
    course = ShardCourse(write(tmp_path / "s", 50), 40, seed=3)
    seen: list[int] = []
    step = 0
    while len(seen) < 150:
        seen += (course.batch(step).ids[:, 0] - 1).tolist()
        step += 1
    for start in (0, 50, 100):
        assert sorted(seen[start : start + 50]) == list(range(50))
    assert seen[:50] != seen[50:100]


@given(st.integers(0, 40), st.integers(0, 40))
def test_jumping_to_a_step_gives_what_walking_gives(shard: Shard, first: int, second: int):
    walked, jumped = ShardCourse(shard, 40, seed=3), ShardCourse(shard, 40, seed=3)
    batches = [walked.batch(step) for step in range(41)]
    for step in (first, second):
        assert torch.equal(jumped.batch(step).ids, batches[step].ids)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return write(tmp_path_factory.mktemp("course") / "s", 37)


def test_an_unfinished_shard_is_not_taken_for_a_whole_one(tmp_path: Path):
    def cut_off() -> None:
        with ShardWriter(tmp_path / "s", 300, "a test") as writer:
            writer.add(example(4, 1))
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut"):
        cut_off()
    assert not is_finished(tmp_path / "s", "a test")
    with pytest.raises(ConfigError, match="no finished shard"):
        Shard(tmp_path / "s")
    write(tmp_path / "s", 3)
    assert is_finished(tmp_path / "s", "a test")
    assert not is_finished(tmp_path / "s", "something else")


def test_a_shortened_file_is_refused(tmp_path: Path):
    write(tmp_path / "s", 3)
    (tmp_path / "s" / "learn").write_bytes(b"\x00")
    with pytest.raises(ConfigError, match="1 bytes instead of"):
        Shard(tmp_path / "s")


_COUNT = """
import sys
from pathlib import Path
import numpy as np
from outrider_cloud.train.texts.chat import Example
from outrider_cloud.train.texts.course import ShardCourse
from outrider_cloud.train.texts.shards import Shard, ShardWriter

def own():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])

texts = int(sys.argv[1])
learn = np.ones(4000, bool)
before = own()
with ShardWriter(Path(sys.argv[2]), 60000, "x") as writer:
    for n in range(texts):
        writer.add(Example(np.full(4000, n % 60000, np.uint16), learn))
course = ShardCourse(Shard(Path(sys.argv[2])), 4000, seed=1)
for step in range(0, texts, 2):
    course.batch(step)
print(own() - before)
"""


def grown_by(texts: int, folder: Path) -> int:
    """kB of a process's own memory, after it wrote and read so many texts of 4000 tokens."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _COUNT, str(texts), str(folder)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_texts(tmp_path: Path):
    """Twelve times the texts (66 MB more on disk): the same memory within a few megabytes."""
    grown = [grown_by(n, tmp_path / str(n)) for n in (500, 6_000)]
    assert grown[1] - grown[0] < 12_000, f"{grown} kB"
