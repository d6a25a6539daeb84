"""Generation with known noise, and the figures of a pair."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from outrider_cloud.train.corpus import Chat
from outrider_cloud.train.evaluate import answer_figures, pair_figures, parse_calls, prompts_of, walk
from outrider_cloud.train.generate import continue_texts, perturbed

MakeTiny = Callable[[int], nn.Module]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batched_continuations_follow_the_rule_of_one_full_pass(
    make_tiny: MakeTiny, tokenizer: Tokenizer, temperature: float
):
    model = make_tiny(0).eval()
    prompts = [
        tokenizer.encode(text).ids for text in ("<|user|>hi<|end|><|assistant|>", "<|user|>", "<|user|>longer text")
    ]
    new = continue_texts(model, prompts, tokenizer.token_to_id("<|end|>"), temperature, seed=3, most=12, rows_at_once=2)
    for row, (prompt, ids) in enumerate(zip(prompts, new, strict=True)):
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
        places = list(range(len(prompt), len(prompt) + len(ids)))
        chosen = perturbed(logits, temperature, 3, [row] * len(ids), places).argmax(-1).tolist()
        assert sum(a == b for a, b in zip(chosen, ids, strict=True)) >= len(ids) - 1  # bfloat16 may flip a near-tie


def test_noise_makes_samples_of_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    rows = range(6000)
    chosen = perturbed(logits.expand(6000, 3), 1.0, 0, rows, [0] * 6000).argmax(-1)
    shares = torch.bincount(chosen, minlength=3) / 6000
    assert torch.allclose(shares, logits.softmax(-1)[0], atol=0.03)


@pytest.mark.parametrize(
    ("matches", "steps"),
    [
        ([True] * 10, 2),
        ([False] * 3, 3),
        ([True, False, True, True], 2),
        ([True, True, True, True, False, True], 2),
        ([], 0),
    ],
)
def test_a_walk_counts_steps_of_chains_of_four(matches: list[bool], steps: int):
    assert walk(matches, 4) == (len(matches), steps)


def test_a_pair_of_equal_models_accepts_everything(make_tiny: MakeTiny, tokenizer: Tokenizer, chat: Chat):
    model = make_tiny(0).eval()
    figures = pair_figures(model, model, tokenizer, prompts_of(tokenizer, [chat]), temperature=0.8)
    assert figures["accepted_share"] > 0.95
    assert figures["tokens_per_step"] > 4


def test_prompts_end_where_the_assistant_begins(tokenizer: Tokenizer, chat: Chat):
    first, second = prompts_of(tokenizer, [chat])
    assert tokenizer.decode(first.ids, skip_special_tokens=False).endswith("to 40<|end|><|assistant|>")
    assert first.first
    assert not second.first
    assert second.expected == "It's at 40% \u2013 done.<|end|>"


def test_calls_are_read_or_refused():
    call = '<tool_call>{"name": "HassTurnOn", "arguments": {"name": "Lamp"}}</tool_call>'
    assert parse_calls(f"Sure.{call}{call}<|end|>") == [{"name": "HassTurnOn", "arguments": {"name": "Lamp"}}] * 2
    assert parse_calls("no call") == []
    assert parse_calls(call[:-5]) is None
    assert parse_calls('<tool_call>{"name": 3, "arguments": {}}</tool_call>') is None


def test_answer_figures_of_an_untrained_model_are_zero(make_tiny: MakeTiny, tokenizer: Tokenizer, chat: Chat):
    figures = answer_figures(make_tiny(0).eval(), tokenizer, prompts_of(tokenizer, [chat]))
    assert figures == {"answers": 1, "valid_call_share": 0, "same_calls_share": 0}
