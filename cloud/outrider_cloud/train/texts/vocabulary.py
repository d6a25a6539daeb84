"""Byte-level BPE: any text can be written, and reads back as it was."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from outrider_cloud.train.texts.chat import CALL_TOKENS, CONTROL_TOKENS, END, PAD, TEMPLATE


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
        if tokenizer.get_vocab_size() > size:
            raise ValueError(
                f"a vocabulary of {size} is less than the {tokenizer.get_vocab_size()} that bytes and marks need"
            )
        raise ValueError(f"the texts give only {tokenizer.get_vocab_size()} of {size} tokens")
    return _show_calls(tokenizer)


def _show_calls(tokenizer: Tokenizer) -> Tokenizer:
    """Call marks stay visible when control tokens are skipped in decoding: whoever reads the text needs them."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] not in CALL_TOKENS
    return Tokenizer.from_str(json.dumps(state))


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """The files that a model folder needs of a tokenizer of ours: its settings and the chat template, then itself."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": PAD,
        "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE,
    }  # fmt: skip
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
