"""What a run shows while it goes: mean loss, tokens per second, a bar."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Meter:
    """Mean loss and tokens per second since it was last read."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything and start the clock again."""
        self._started_s, self._losses, self._tokens = time.monotonic(), list[float](), 0

    def add(self, loss: float, tokens: int) -> None:
        """Count one step."""
        self._losses.append(loss)
        self._tokens += tokens

    def take(self) -> dict[str, float]:
        """The figures so far; starts again."""
        elapsed_s = max(1e-9, time.monotonic() - self._started_s)
        figures = {"loss": sum(self._losses) / max(1, len(self._losses)), "tokens_per_s": self._tokens / elapsed_s}
        self.restart()
        return figures


def progress_bar(*, shown: bool) -> Progress:
    """A bar with the time that is left and a note, on stderr; nothing in processes that do not lead."""
    columns = (
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=1, disable=not shown)
