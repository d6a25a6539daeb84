"""`outrider train`: make the best draft for a target, and prove it.

Commands import what they need when they run, so that `--help` is quick and the group works without the [train] extra.
"""

from __future__ import annotations

import click

from outrider_shared.cli import TrainingCommands
from outrider_shared.logs import configure_logs


@click.group(cls=TrainingCommands)
def train() -> None:
    """Train targets and drafts: from data, from the target's own samples, or by pruning."""
    configure_logs()


if __name__ == "__main__":
    train()
