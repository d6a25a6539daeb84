"""Model folders as transformers reads them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from outrider_cloud.train.loop.folders import read_model, weights_dtype, write_model
from outrider_cloud.train.texts.chat import render
from outrider_cloud.train.texts.corpus import Chat
from outrider_cloud.train.texts.vocabulary import write_tokenizer
from outrider_shared.errors import ConfigError


@pytest.fixture
def beside(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A folder that holds the tokenizer's files."""
    folder = tmp_path / "beside"
    folder.mkdir()
    write_tokenizer(tokenizer, folder)
    return folder


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_folder_reads_back_as_the_same_model(
    make_tiny: Callable[[int], nn.Module], beside: Path, tmp_path: Path, name: str
):
    model, dtype = make_tiny(0), weights_dtype(name)
    write_model(model, tmp_path / "model", beside, dtype)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert again.dtype == dtype
    assert (again.config.bos_token_id, again.config.eos_token_id, again.config.pad_token_id) == (None, 1, 0)
    assert again.config.tie_word_embeddings
    assert again.generation_config.eos_token_id == 1
    for key, wanted in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], wanted.to(dtype)), key
    assert next(read_model(tmp_path / "model").parameters()).dtype == torch.float32
    assert len({path.stat().st_mode for path in (tmp_path / "model").iterdir()}) == 1


def test_weights_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match="float32, bfloat16"):
        weights_dtype("int8")


def test_the_tokenizer_renders_chats_as_training_does(tokenizer: Tokenizer, beside: Path, chat: Chat):
    again = AutoTokenizer.from_pretrained(beside)
    messages = [
        {
            "role": m.role,
            "content": m.content,
            "tool_calls": [{"name": c.name, "arguments": c.arguments} for c in m.calls],
        }
        for m in chat.messages
    ]
    assert again.apply_chat_template(messages, tokenize=False) == render(chat)
    assert again.eos_token_id == tokenizer.token_to_id("<|end|>")
    assert len(again) == tokenizer.get_vocab_size()
