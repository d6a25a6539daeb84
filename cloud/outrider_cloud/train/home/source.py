"""The bundled pair's texts as a source of examples and prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from tokenizers import Tokenizer

from outrider_cloud.train.home.rows import shorten
from outrider_cloud.train.home.texts import Texts
from outrider_cloud.train.texts.chat import Example, encode_chats, pieces
from outrider_cloud.train.texts.corpus import Chat, stable_hash

LONGEST = 448  # tokens of a text


@dataclass(frozen=True)
class HomeSource:
    """The cleaned smart-home chats with their varying houses, and a share of help texts."""

    texts: Texts
    tokenizer: Tokenizer
    longest: int = LONGEST
    name: str = "smart-home"

    def examples(self, part: int) -> Iterator[Example]:
        """One pass with this part's houses."""
        chats = iter(self.texts.chats(part))
        while group := list(islice(chats, 512)):
            yield from encode_chats(self.tokenizer, group, self.longest)

    def prompts(self) -> Iterator[list[int]]:
        """Before each of the assistant's turns, in an order by hash; other houses in each pass."""
        part = 0
        while True:
            chats = self.texts.chats(part)
            order = sorted(range(len(chats)), key=lambda i: stable_hash("prompt", part, i))
            for index in order:
                yield from self._prompts_of(chats[index])
            part += 1

    def _prompts_of(self, chat: Chat) -> Iterator[list[int]]:
        ids: list[int] = []
        for text, own in pieces(chat):
            if own and len(ids) < self.longest - 32:
                yield list(ids)
            ids += self.tokenizer.encode(text).ids

    def held_out(self) -> Iterator[Example]:
        """The held-out chats."""
        yield from encode_chats(self.tokenizer, self.texts.validation(), self.longest)

    def held_out_prompts(self) -> Iterator[list[int]]:
        """The first request of each held-out chat."""
        for row in self.texts.held_out:
            yield next(self._prompts_of(shorten(row, salt=0)))
