"""A small chat, a small vocabulary, a model of a few thousand parameters."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from outrider_cloud.train.texts.chat import render
from outrider_cloud.train.texts.corpus import Call, Chat, Message
from outrider_cloud.train.texts.vocabulary import train_vocabulary


@pytest.fixture
def chat() -> Chat:
    """A request, a call, its result, an answer."""
    call = Call("HassLightSet", {"name": 'The "big" lamp', "brightness": 40})
    return Chat(
        (
            Message("system", "Devices:\nlight.big 'The \"big\" lamp' = on"),
            Message("user", "dim the big lamp to 40"),
            Message("assistant", "Dimming it.", (call,)),
            Message("tool", "Success"),
            Message("assistant", "It's at 40% \u2013 done."),
        ),
        "home",
        ('The "big" lamp', "light.big"),
    )


@pytest.fixture
def tokenizer(chat: Chat) -> Tokenizer:
    """All bytes, the control tokens, and a few merges."""
    return train_vocabulary([render(chat)] * 3, 300)


@pytest.fixture
def make_tiny(tokenizer: Tokenizer) -> Callable[[int], LlamaForCausalLM]:
    """Models of about ten thousand parameters, by seed."""

    def make(seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, intermediate_size=24, max_position_embeddings=256,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.token_to_id("<|end|>"), pad_token_id=0,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    return make
