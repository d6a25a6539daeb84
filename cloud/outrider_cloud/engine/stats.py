"""Running totals of the engine, for metrics, benchmarks and logs."""

from __future__ import annotations

from dataclasses import dataclass

_FOLLOW = 0.1


@dataclass(slots=True)
class EngineStats:
    """Totals since the start.

    Attributes:
        steps: Steps run.
        rows: Rows run, padding aside.
        committed: Tokens committed.
        preemptions: Times a session was put aside for want of KV.
        forward_s: Seconds inside the model's forward, attention included.
        draft_s: Seconds spent on drafts of the cloud's own, before the steps that ran them.
        total_s: Seconds inside `Engine.step` when it had work, drafting aside; the difference is our own overhead.
        step_s: Time of a step these days (moving average).
    """

    steps: int = 0
    rows: int = 0
    committed: int = 0
    preemptions: int = 0
    forward_s: float = 0.0
    draft_s: float = 0.0
    total_s: float = 0.0
    step_s: float = 0.0

    def add(self, rows: int, forward_s: float, total_s: float) -> None:
        """Count one step."""
        self.steps += 1
        self.rows += rows
        self.forward_s += forward_s
        self.total_s += total_s
        self.step_s += (total_s - self.step_s) * (_FOLLOW if self.step_s else 1.0)
