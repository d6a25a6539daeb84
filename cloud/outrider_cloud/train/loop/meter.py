"""What a run shows while it goes: mean loss, tokens per second, a bar."""

import datetime as dt
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


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
    """A bar with the time that is left and a note, on stderr; nothing in processes that do not lead, nor in a log."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(
        *columns, console=console, refresh_per_second=1, transient=not console.is_terminal, disable=not shown
    )


def note(progress: Progress, bar: TaskID, text: str) -> None:
    """Show a note beside the bar; in a log, where there is none, as a line of its own with the time left."""
    progress.update(bar, note=text)
    console = progress.console
    if progress.disable or console.is_terminal:
        return
    task = next(each for each in progress.tasks if each.id == bar)
    left = "" if not task.time_remaining else f"  {dt.timedelta(seconds=int(task.time_remaining))} left"
    console.print(f"{task.completed:.0f}/{task.total or 0:.0f}  {text}{left}", highlight=False, soft_wrap=True)
