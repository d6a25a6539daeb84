"""What the bundled pair is made of: texts, sizes, batches."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from outrider_cloud.train import asides
from outrider_cloud.train.batches import Batch, Course, collate, plan
from outrider_cloud.train.chat import END, PAD, Example, encode_chats
from outrider_cloud.train.corpus import Chat
from outrider_cloud.train.home import HomeRow, read_home, shorten, split
from outrider_cloud.train.variants import training_chats

VOCABULARY = 4096
CONTEXT = 512
LONGEST = 448


@dataclass(frozen=True)
class Shape:
    """The size of a Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int


TARGET = Shape(hidden=256, layers=8, heads=4, kv_heads=2, head_dim=64, intermediate=704)
DRAFT = Shape(hidden=128, layers=2, heads=4, kv_heads=2, head_dim=32, intermediate=352)


@dataclass(frozen=True)
class Texts:
    """All cleaned data, split."""

    home: list[HomeRow]
    held_out: list[HomeRow]
    taskmaster: list[Chat]
    tldr: list[Chat]
    dropped: Counter[str]

    def chats(self, epoch: int) -> list[Chat]:
        """One pass: all smart-home chats with this pass's houses, and a rotating share of the help data."""
        home = training_chats(self.home, epoch, elsewhere=self.taskmaster)
        return [*home, *self.taskmaster[epoch % 2 :: 2], *self.tldr[epoch % 5 :: 5]]

    def validation(self) -> list[Chat]:
        """The held-out chats with houses that do not change."""
        return [shorten(row, salt=0) for row in self.held_out]


def read_texts(data: Path) -> Texts:
    """Read and clean everything. Raises CorpusError."""
    rows, dropped = read_home(data)
    training, held_out = split(rows)
    return Texts(training, held_out, asides.read_taskmaster(data), asides.read_tldr(data), dropped)


def make_model(shape: Shape, tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """A fresh Llama with tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        max_position_embeddings=CONTEXT,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return LlamaForCausalLM(config)


def make_course(texts: Texts, tokenizer: Tokenizer, tokens_per_batch: int, context_share: float) -> Course:
    """The endless series of training batches."""

    def examples_of(epoch: int) -> list[Example]:
        return encode_chats(tokenizer, texts.chats(epoch), LONGEST)

    return Course(examples_of, tokens_per_batch, context_share, seed=17)


def validation_batches(texts: Texts, tokenizer: Tokenizer) -> list[Batch]:
    """The held-out chats; only the assistant's tokens count."""
    examples = encode_chats(tokenizer, texts.validation(), LONGEST)
    lengths = [len(example.ids) for example in examples]
    return [collate([examples[i] for i in part], 0.0) for part in plan(lengths, tokens_per_batch=8192, seed=0)]
