"""Model folders as transformers reads them."""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from outrider_cloud.train.chat import render
from outrider_cloud.train.corpus import Chat
from outrider_cloud.train.folder import save_folder


def test_a_folder_reads_back_as_the_same_model(
    make_tiny: Callable[[int], nn.Module], tokenizer: Tokenizer, chat: Chat, tmp_path: Path
):
    model = make_tiny(0).to(torch.bfloat16)
    save_folder(model, tokenizer, tmp_path, 256)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert (again.config.bos_token_id, again.config.eos_token_id, again.config.pad_token_id) == (None, 1, 0)
    assert again.config.tie_word_embeddings
    for name, wanted in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], wanted), name


def test_the_tokenizer_renders_chats_as_training_does(
    make_tiny: Callable[[int], nn.Module], tokenizer: Tokenizer, chat: Chat, tmp_path: Path
):
    save_folder(make_tiny(0), tokenizer, tmp_path, 256)
    again = AutoTokenizer.from_pretrained(tmp_path)
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
