"""Byte-level BPE: any text can be written, and reads back as it was."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from outrider_cloud.train.chat import CALL_TOKENS, CONTROL_TOKENS


def train_vocabulary(texts: Iterable[str], size: int) -> Tokenizer:
    """A tokenizer of exactly `size` ids: control tokens, bytes, merges. Raises ValueError if the text is too small."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*CONTROL_TOKENS, *CALL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"the texts give only {tokenizer.get_vocab_size()} of {size} tokens")
    return _show_calls(tokenizer)


def _show_calls(tokenizer: Tokenizer) -> Tokenizer:
    """Call marks stay visible when control tokens are skipped in decoding: whoever reads the text needs them."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] not in CALL_TOKENS
    return Tokenizer.from_str(json.dumps(state))
