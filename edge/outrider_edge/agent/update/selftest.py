"""Trying a pack before it is used, with the runtime that will use it.

Arithmetic differs a little between processors, so a share of golden tokens must agree, not all. Without golden prompts
the test is that logits are finite and differ between tokens, and that the same prompt gives the same tokens twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from outrider_shared.drafting.runtime import DraftModel, DraftRuntime
from outrider_shared.errors import OutriderError, SelfTestError
from outrider_shared.fleet.artifact import Golden

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from outrider_shared.packs import Pack

AGREEMENT = 0.9
TEXTS = ("turn on the kitchen light", "The quick brown fox", "1 2 3 4 5")
_LENGTH = 16


def self_test(folder: Path, golden: Sequence[Golden]) -> None:
    """Try a pack.

    Raises:
        SelfTestError: what it failed, and by how much.
    """
    try:
        model = DraftModel.load(folder)
        runtime = model.new_runtime()
        if golden:
            _agree(runtime, golden)
        else:
            for prompt in _prompts(model.pack, TEXTS):
                if greedy(runtime, prompt, _LENGTH) != greedy(runtime, prompt, _LENGTH):
                    raise SelfTestError(f"{folder.name}: the same prompt gives different tokens")
    except SelfTestError:
        raise
    except OutriderError as error:
        raise SelfTestError(f"the pack does not work here: {error.message}", hint=error.hint) from error


def make_golden(pack: Path, texts: Sequence[str] = TEXTS, length: int = _LENGTH) -> tuple[Golden, ...]:
    """What a pack finds likeliest after these texts.

    Raises:
        PackError: if it cannot be loaded.
    """
    model = DraftModel.load(pack)
    runtime = model.new_runtime()
    return tuple(Golden(tuple(p), tuple(greedy(runtime, p, length))) for p in _prompts(model.pack, texts))


def greedy(runtime: DraftRuntime, prompt: Sequence[int], length: int) -> list[int]:
    """The likeliest tokens after a prompt, one by one."""
    runtime.rewind(0)
    logits, found = _checked(runtime.prefill(list(prompt))), list[int]()
    for _ in range(length):
        found.append(int(logits.argmax()))
        logits = _checked(runtime.forward(found[-1:], rows=(0,)))
    return found


def _agree(runtime: DraftRuntime, golden: Sequence[Golden]) -> None:
    right = total = 0
    for case in golden:
        # The expected tokens are fed back, so one near-tie does not throw off all that follow.
        runtime.rewind(0)
        logits = _checked(runtime.prefill(list(case.prompt)))
        for token in case.expected:
            right += int(logits.argmax()) == token
            total += 1
            logits = _checked(runtime.forward([token], rows=(0,)))
    if right < AGREEMENT * total:
        raise SelfTestError(
            f"{right} of {total} golden tokens agree, {AGREEMENT:.0%} must",
            hint="the pack computes something else on this device than where it was made",
        )


def _checked(logits: np.ndarray) -> np.ndarray:
    last: np.ndarray = logits[-1]
    if not np.isfinite(last).all() or float(np.ptp(last)) == 0:
        raise SelfTestError("the pack gives logits that are not finite, or all the same")
    return last


def _prompts(pack: Pack, texts: Sequence[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(pack.tokenizer_path))
    width = pack.manifest.architecture.vocab_size
    return [[i for i in tokenizer.encode(text).ids if i < width] or [0] for text in texts]
