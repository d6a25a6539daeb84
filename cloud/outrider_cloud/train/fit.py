"""The training loop: any loss, any batches; checkpoints from which a run goes on exactly as if it had not stopped.

Randomness is not used in here: the order of batches is a function of the step, and models have no dropout. So weights,
optimizer state and step are the whole state of a run.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from outrider_cloud.train.batches import Batch


class FitError(RuntimeError):
    """The run cannot go on: a checkpoint that does not fit, or a loss that is not a number."""


class BatchSource(Protocol):
    """Batches by step number."""

    def batch(self, step: int) -> Batch:
        """The batch of a step; the same batch for the same step."""
        ...


@dataclass(frozen=True)
class FitConfig:
    """`steps` may be changed when resuming: the learning rate depends on it only in the final decay."""

    steps: int
    muon_lr: float = 0.02  # hidden matrices; scaled inside Muon by sqrt(max(1, rows / columns))
    adam_lr: float = 3e-3  # embeddings and norms
    weight_decay: float = 0.02
    warmup_steps: int = 60
    decay_share: float = 0.45  # of all steps, at the end: linear to zero
    clip_norm: float = 1.0
    log_every: int = 20
    validate_every: int = 200
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.decay_share <= 1:
            raise ValueError(f"steps {self.steps} and decay_share {self.decay_share} make no schedule")

    def rate(self, step: int) -> float:
        """The learning rate's factor at a step, in [0, 1]."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay = max(1.0, self.decay_share * self.steps)
        return min(warm, (self.steps - step) / decay, 1.0)


LossOf = Callable[[nn.Module, Batch], Tensor]
Validate = Callable[[nn.Module], dict[str, float]]
OnCheckpoint = Callable[[nn.Module, int], None]


def make_optimizers(model: nn.Module, config: FitConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest (embeddings and norms)."""
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (hidden if inside else rest).append(parameter)
    decay = config.weight_decay
    return [
        torch.optim.Muon(hidden, lr=config.muon_lr, weight_decay=decay),
        torch.optim.AdamW(rest, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


class Fit:
    """One run of training: `run()` goes from the last checkpoint, if there is one, to the last step."""

    def __init__(
        self,
        model: nn.Module,
        batches: BatchSource,
        loss_of: LossOf,
        config: FitConfig,
        folder: Path,
        validate: Validate | None = None,
        on_checkpoint: OnCheckpoint | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self._batches = batches
        self._loss_of = loss_of
        self._validate = validate
        self._on_checkpoint = on_checkpoint
        self._folder = folder
        self._optimizers = make_optimizers(model, config)
        self._peaks = [[group["lr"] for group in o.param_groups] for o in self._optimizers]
        self.step = 0

    @property
    def checkpoint(self) -> Path:
        """Where the state of the run is kept."""
        return self._folder / "checkpoint.pt"

    def run(self, stop_at: int | None = None) -> None:
        """Train to `stop_at` (default: the end). Raises FitError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        with _progress() as progress:
            bar = progress.add_task("", total=self.config.steps, completed=self.step, note="")
            meter = Meter()
            while self.step < min(stop_at or self.config.steps, self.config.steps):
                batch = self._batches.batch(self.step)
                meter.add(self.train_step(batch), batch.tokens)
                self.step += 1
                self._report(meter, progress, bar)
                if self.step % self.config.checkpoint_every == 0:
                    self.save()
        self.save()

    def train_step(self, batch: Batch) -> float:
        """One update; returns the loss before it."""
        self.model.train()
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * self.config.rate(self.step)
        loss = self._loss_of(self.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        if not torch.isfinite(norm):
            raise FitError(f"step {self.step}: loss {float(loss.detach())}, gradient {float(norm)}")
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def save(self) -> None:
        """Write the checkpoint, never leaving half a file in its place."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self._optimizers],
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)
        if self._on_checkpoint is not None:
            self._on_checkpoint(self.model, self.step)

    def resume(self) -> None:
        """Load the checkpoint if there is one. Raises FitError if it belongs to another model."""
        if not self.checkpoint.exists():
            return
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (RuntimeError, ValueError, KeyError) as error:
            raise FitError(f"{self.checkpoint} does not fit this model: {error}") from error
        self.step = state["step"]

    def _report(self, meter: "Meter", progress: Progress, bar: Any) -> None:
        last = self.step == self.config.steps
        figures: dict[str, float] = {}
        if self.step % self.config.log_every == 0 or last:
            figures |= meter.take()
        if self._validate is not None and (self.step % self.config.validate_every == 0 or last):
            self.model.eval()
            figures |= self._validate(self.model)
            meter.restart()
        if figures:
            note = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            progress.update(bar, note=note)
            with (self._folder / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": self.step, **{k: round(v, 5) for k, v in figures.items()}}) + "\n")
        progress.update(bar, completed=self.step)


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


def _progress() -> Progress:
    columns = (
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, refresh_per_second=1)
