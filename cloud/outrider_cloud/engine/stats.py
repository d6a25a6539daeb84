"""Running totals of the engine, for metrics, benchmarks and logs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Totals since the start.

    Attributes:
        steps: Steps run.
        rows: Rows run, padding aside.
        committed: Tokens committed.
        preemptions: Times a session was put aside for want of KV.
        model_s: Seconds inside the model's forward.
        total_s: Seconds inside `Engine.step` when it had work; the difference is our own overhead.
    """

    steps: int = 0
    rows: int = 0
    committed: int = 0
    preemptions: int = 0
    model_s: float = 0.0
    total_s: float = 0.0

    def add(self, rows: int, model_s: float, total_s: float) -> None:
        """Count one step."""
        self.steps += 1
        self.rows += rows
        self.model_s += model_s
        self.total_s += total_s
