"""All texts of the bundled pair: read, cleaned, split into those to learn from and those held out."""

from dataclasses import dataclass
from pathlib import Path

from outrider_cloud.train.home import asides
from outrider_cloud.train.home.rows import HomeRow, read_home, shorten, split
from outrider_cloud.train.home.variants import training_chats
from outrider_cloud.train.texts.corpus import Chat


@dataclass(frozen=True)
class Texts:
    """All cleaned data, split."""

    home: list[HomeRow]
    held_out: list[HomeRow]
    taskmaster: list[Chat]
    tldr: list[Chat]

    def chats(self, epoch: int) -> list[Chat]:
        """One pass: all smart-home chats with this pass's houses, and a rotating share of the help data."""
        home = training_chats(self.home, epoch, elsewhere=self.taskmaster)
        return [*home, *self.taskmaster[epoch % 2 :: 2], *self.tldr[epoch % 5 :: 5]]

    def validation(self) -> list[Chat]:
        """The held-out chats with houses that do not change."""
        return [shorten(row, salt=0) for row in self.held_out]


def read_texts(data: Path) -> Texts:
    """Read and clean everything. Raises CorpusError."""
    rows, _dropped = read_home(data)
    training, held_out = split(rows)
    return Texts(training, held_out, asides.read_taskmaster(data), asides.read_tldr(data))
