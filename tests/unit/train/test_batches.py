"""Order and packing."""

from random import Random

import numpy as np
import torch

from outrider_cloud.train.batches import Course, collate, plan
from outrider_cloud.train.chat import Example


def example(length: int, first: int = 1) -> Example:
    learn = np.arange(length) >= length // 2
    return Example(np.arange(first, first + length).astype(np.uint16), learn)


def test_a_plan_holds_every_example_once_within_the_budget():
    lengths = [Random(1).randint(5, 60) for _ in range(500)]
    batches = plan(lengths, 256, seed=3)
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 256 for batch in batches)


def test_a_plan_depends_on_nothing_but_the_seed():
    lengths = [Random(1).randint(5, 60) for _ in range(200)]
    assert plan(lengths, 256, seed=3) == plan(lengths, 256, seed=3) != plan(lengths, 256, seed=4)


def test_an_example_over_the_budget_goes_alone():
    assert plan([10, 99], 50, seed=0) in ([[0], [1]], [[1], [0]])


def test_padding_and_first_tokens_count_for_nothing():
    batch = collate([example(4), example(6)], context_share=1.0)
    assert batch.ids.tolist() == [[1, 2, 3, 4, 0, 0], [1, 2, 3, 4, 5, 6]]
    assert batch.weight.tolist() == [[0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]]
    assert collate([example(4)], context_share=0.0).weight.tolist() == [[0, 0, 1, 1]]


def test_jumping_to_a_step_gives_what_walking_gives():
    def course() -> Course:
        return Course(lambda epoch: [example(n % 9 + 2, epoch + 1) for n in range(30)], 40, 0.3, seed=1)

    walked, jumped = course(), course()
    batches = [walked.batch(step) for step in range(25)]
    for step in (24, 3, 11):
        again = jumped.batch(step)
        assert torch.equal(again.ids, batches[step].ids)
        assert torch.equal(again.weight, batches[step].weight)
