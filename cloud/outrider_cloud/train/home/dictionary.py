"""The dictionary that prompts for the bundled pair are compressed with, put together from prompts of the training part.

    python -m outrider_cloud.train.home.dictionary DATA_FOLDER

writes it to where both sides find it by the tokenizer's fingerprint. The same input gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from outrider_cloud.model.loading import bundled_model, load_model
from outrider_cloud.train.home.requests import as_request
from outrider_cloud.train.home.rows import read_home, split
from outrider_shared.chat import render_chat
from outrider_shared.coding import dictionary_path, token_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZE_BYTES = 32768
# As many prompts as fill the dictionary, and some to spare.
SAMPLES = 400


def build_dictionary(prompts: Sequence[Sequence[int]], vocabulary: int, size_bytes: int = SIZE_BYTES) -> bytes:
    """History for the compressor: prompts one after the other, none of which the ones before it hold already."""
    history = bytearray()
    for prompt in prompts:
        plain = token_bytes(prompt, vocabulary)
        fresh = plain[common_bytes(history, plain) :]
        history += fresh
    return bytes(history[-size_bytes:])


def common_bytes(history: bytes | bytearray, plain: bytes) -> int:
    """Length of the longest beginning of `plain` that occurs in `history`, in whole token ids of two bytes."""
    low, high = 0, len(plain) // 2
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if plain[: 2 * middle] in history else (low, middle - 1)
    return 2 * low


def main(data: Path) -> None:
    """Read the training part of the smart-home chats, and write."""
    model = load_model(bundled_model())
    training, _ = split(read_home(data)[0])
    chosen = Random(0).sample(training, SAMPLES)  # noqa: S311 - a choice of samples
    template = (bundled_model() / "chat_template.jinja").read_text()
    texts = [render_chat(template, as_request(row)["messages"]) for row in chosen]
    prompts = [encoding.ids for encoding in model.tokenizer.encode_batch(texts, add_special_tokens=False)]
    path = dictionary_path(model.tokenizer_sha256)
    path.write_bytes(build_dictionary(prompts, model.vocabulary))
    sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
