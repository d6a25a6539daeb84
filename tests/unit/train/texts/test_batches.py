"""Order and packing."""

from random import Random

from outrider_cloud.train.texts.batches import plan


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
