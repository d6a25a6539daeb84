"""What the pair is for, measured on held-out requests: are the calls right, and how many tokens does a step commit.

A chain's token is accepted exactly if the draft, given the target's own text so far and the same noise, chooses what
the target chose. So one pass of the draft over the target's texts tells every acceptance of every chain.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from outrider_cloud.train.chat import end_of, render
from outrider_cloud.train.corpus import Chat
from outrider_cloud.train.generate import continue_texts, perturbed


@dataclass(frozen=True)
class Prompt:
    """The text before one of the assistant's turns, and that turn as the data has it."""

    ids: list[int]
    expected: str
    devices: tuple[str, ...]
    first: bool


def prompts_of(tokenizer: Tokenizer, chats: list[Chat]) -> list[Prompt]:
    """Every turn of the assistant as something to continue."""
    prompts = []
    for chat in chats:
        for index, message in enumerate(chat.messages):
            if message.role == "assistant":
                before = render(Chat(chat.messages[:index], chat.source))
                whole = render(Chat(chat.messages[: index + 1], chat.source))
                prompt = before + "<|assistant|>"
                prompts.append(Prompt(tokenizer.encode(prompt).ids, whole[len(prompt) :], chat.devices, index <= 2))
    return prompts


def parse_calls(text: str) -> list[dict[str, Any]] | None:
    """The tool calls of an answer; None if one of them is no call."""
    calls = []
    for part in text.split("<tool_call>")[1:]:
        body, closed, _ = part.partition("</tool_call>")
        try:
            call = json.loads(body)
            if not closed or not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
                return None
        except (json.JSONDecodeError, KeyError, TypeError):
            return None
        calls.append(call)
    return calls


def answer_figures(model: nn.Module, tokenizer: Tokenizer, prompts: list[Prompt]) -> dict[str, float]:
    """Shares of greedy first answers: calls that parse and name devices of the house; calls equal to the data's."""
    first = [prompt for prompt in prompts if prompt.first]
    new = continue_texts(model, [prompt.ids for prompt in first], end_of(tokenizer))
    good = same = wanted = 0
    for prompt, ids in zip(first, new, strict=True):
        calls = parse_calls(tokenizer.decode(ids, skip_special_tokens=False))
        expected = parse_calls(prompt.expected)
        same += calls == expected
        if expected:
            wanted += 1
            good += bool(calls) and all(call["arguments"].get("name") in prompt.devices for call in calls or [])
    return {
        "answers": len(first),
        "valid_call_share": good / max(1, wanted),
        "same_calls_share": same / max(1, len(first)),
    }


def walk(matches: list[bool], chain: int) -> tuple[int, int]:
    """(tokens, steps) over a text whose draft matches are known: a step commits its accepted run and one more."""
    at = steps = 0
    while at < len(matches):
        run = 0
        while run < chain and at + run < len(matches) and matches[at + run]:
            run += 1
        at += run + 1
        steps += 1
    return len(matches), steps


@torch.no_grad()
def pair_figures(
    target: nn.Module,
    draft: nn.Module,
    tokenizer: Tokenizer,
    prompts: list[Prompt],
    temperature: float,
    chain: int = 4,
    seed: int = 5,
) -> dict[str, float]:
    """Acceptance of single tokens and committed tokens per step with chains, on the target's own texts."""
    new = continue_texts(target, [p.ids for p in prompts], end_of(tokenizer), temperature, seed)
    tokens = steps = accepted = 0
    for row, (prompt, ids) in enumerate(zip(prompts, new, strict=True)):
        whole = torch.tensor([prompt.ids + ids])
        with torch.autocast("cpu", torch.bfloat16):
            logits = draft(input_ids=whole).logits[0, len(prompt.ids) - 1 : -1].float()
        places = range(len(prompt.ids), len(prompt.ids) + len(ids))
        chosen = perturbed(logits, temperature, seed, [row] * len(ids), list(places)).argmax(-1)
        matches = [guess == token for guess, token in zip(chosen.tolist(), ids, strict=True)]
        text_tokens, text_steps = walk(matches, chain)
        tokens, steps, accepted = tokens + text_tokens, steps + text_steps, accepted + sum(matches)
    return {"accepted_share": accepted / tokens, "tokens_per_step": tokens / steps, "tokens": tokens}
