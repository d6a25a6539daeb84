"""The training loop: any loss, any batches; checkpoints from which a run goes on exactly as if it had not stopped.

Randomness is not used in here: the order of batches is a function of the step, and models have no dropout. So weights,
optimizer state, step and what early stopping remembers are the whole state of a run.

A step is one update from `micro_batches` batches, as if they were one: each counts by its learned tokens. Several
processes (a `World`) share them out, a stretch each. Sums of gradients depend on their order in the last bit, which
passes in bfloat16 make a ten-thousandth of the loss in 50 steps. So one process adds as two do: each half of a step's
batches in their order, then the halves. Decision 0026 has what else was tried.
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from outrider_cloud.train.loop.compiling import compiled
from outrider_cloud.train.loop.config import FitConfig
from outrider_cloud.train.loop.halves import Halves
from outrider_cloud.train.loop.losses import computing
from outrider_cloud.train.loop.meter import Meter, note, progress_bar
from outrider_cloud.train.loop.optimizers import make_optimizers
from outrider_cloud.train.loop.world import World
from outrider_cloud.train.texts.batches import Batch
from outrider_shared.errors import OutriderError
from outrider_shared.files import storage_errors


class FitError(OutriderError):
    """The run cannot go on: a checkpoint that does not fit, or a loss that is not a number."""

    code = "training"


class BatchSource(Protocol):
    """Batches by step number."""

    def batch(self, step: int) -> Batch:
        """The batch of a step; the same batch for the same step."""
        ...


LossOf = Callable[[nn.Module, Batch], Tensor]
Validate = Callable[[nn.Module], dict[str, float]]


class _Loss(nn.Module):
    """The loss as a module's forward pass, which is where DistributedDataParallel listens."""

    def __init__(self, model: nn.Module, loss_of: LossOf) -> None:
        super().__init__()
        self.model, self._loss_of = model, loss_of

    def forward(self, batch: Batch) -> Tensor:
        return self._loss_of(self.model, batch)


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
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        if config.micro_batches < self.world.size:
            raise FitError(
                f"{config.micro_batches} batches a step are too few for {self.world.size} processes",
                hint="raise micro_batches; the tokens of a step are micro_batches x tokens_per_batch",
            )
        self.model = model.to(self.world.device)
        if config.compile:
            compiled(self.model)
        self.config = config
        self.batches = batches
        self._validate = validate
        self._folder = folder
        self._optimizers = make_optimizers(model, config)
        self._peaks = [[group["lr"] for group in o.param_groups] for o in self._optimizers]
        self._loss: nn.Module = _Loss(model, loss_of)
        if self.world.size > 1:
            self._loss = DistributedDataParallel(self._loss)
        self.step = 0
        self.stopped = False
        self._best, self._worse = float("inf"), 0

    @property
    def checkpoint(self) -> Path:
        """Where the state of the run is kept."""
        return self._folder / "checkpoint.pt"

    def run(self, stop_at: int | None = None) -> None:
        """Train to `stop_at` (default: the end). Raises FitError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        end = min(stop_at or self.config.steps, self.config.steps)
        with progress_bar(shown=self.world.leads) as progress, computing(bfloat16=self.config.bfloat16):
            bar = progress.add_task("", total=self.config.steps, completed=self.step, note="")
            meter = Meter()
            while self.step < end and not self.stopped:
                loss, tokens = self.train_step()
                meter.add(loss, tokens)
                self.step += 1
                self._report(meter, progress, bar)
                if self.step % self.config.checkpoint_every == 0:
                    self.save()
        self.save()
        if self.stopped and self._best_weights.exists():
            self.model.load_state_dict(torch.load(self._best_weights, weights_only=True))

    def train_step(self) -> tuple[float, int]:
        """One update; returns the loss before it, and the tokens that were computed here."""
        self.model.train()
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * self.config.rate(self.step)
        loss, tokens = self._backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        if not torch.isfinite(norm):
            raise FitError(
                f"step {self.step}: loss {loss}, gradient {float(norm)}",
                hint="lower the learning rates, or look at the data of this step",
            )
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss, tokens

    def _backward(self) -> tuple[float, int]:
        world, count = self.world, self.config.micro_batches
        bounds = [world.rank * count // world.size, (world.rank + 1) * count // world.size]
        first = self.step * count
        mine = [self.batches.batch(first + i).to(world.device) for i in range(*bounds)]
        weights = [float(batch.weight[:, 1:].sum()) for batch in mine]
        whole = world.total(sum(weights))
        total, halves = 0.0, Halves(self.model) if world.size == 1 and count > 2 else None
        for index, (batch, weight) in enumerate(zip(mine, weights, strict=True)):
            if halves is not None and index == count // 2:
                halves.put_by()
            share = weight / whole
            # Gradients are averaged over the processes when the last batch has been through.
            last = index == len(mine) - 1
            quiet = contextlib.nullcontext() if world.size == 1 or last else self._loss.no_sync()  # type: ignore[operator]
            with quiet:
                loss = self._loss(batch)
                (loss if share == 1 and world.size == 1 else loss * (share * world.size)).backward()
            total += float(loss.detach()) * share
        if halves is not None:
            halves.join()
        return world.total(total), sum(batch.tokens for batch in mine)

    def save(self) -> None:
        """Write the checkpoint, never leaving half a file in its place. Raises FitError, StorageError."""
        if not all(bool(torch.isfinite(each).all()) for each in self.model.parameters()):
            raise FitError(f"step {self.step}: weights that are no numbers", hint="lower the learning rates")
        if self.world.leads:
            state = {
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizers": [o.state_dict() for o in self._optimizers],
                "best": self._best,
                "worse": self._worse,
                "stopped": self.stopped,
            }
            _write(state, self.checkpoint)
        self.world.wait()

    def resume(self) -> None:
        """Load the checkpoint if there is one. Raises FitError if it belongs to another model."""
        if not self.checkpoint.exists():
            return
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True, map_location=self.world.device)
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (RuntimeError, ValueError, KeyError) as error:
            raise FitError(f"{self.checkpoint} does not fit this model: {error}") from error
        self.step = state["step"]
        self._best, self._worse = state.get("best", float("inf")), state.get("worse", 0)
        self.stopped = state.get("stopped", False)

    @property
    def _best_weights(self) -> Path:
        return self._folder / "best.pt"

    def _judge(self, figures: dict[str, float]) -> None:
        """Remember the best validation, and end the run when none was better for too long."""
        if not self.config.patience:
            return
        if self.config.watch not in figures:
            raise FitError(f"early stopping watches {self.config.watch!r}, validation tells {', '.join(figures)}")
        value = self.world.agreed(figures[self.config.watch])
        if value < self._best:
            self._best, self._worse = value, 0
            if self.world.leads:
                _write(self.model.state_dict(), self._best_weights)
            self.world.wait()
        else:
            self._worse += 1
            self.stopped = self._worse >= self.config.patience

    def _report(self, meter: Meter, progress: Progress, bar: Any) -> None:
        last = self.step == self.config.steps
        figures: dict[str, float] = {}
        if self.step % self.config.log_every == 0 or last:
            figures |= meter.take()
        if self._validate is not None and (self.step % self.config.validate_every == 0 or last):
            self.model.eval()
            told = self._validate(self.model)
            figures |= told
            self._judge(told)
            meter.restart()
        if figures and self.world.leads:
            progress.update(bar, completed=self.step)
            note(progress, bar, "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
            path = self._folder / "log.jsonl"
            with storage_errors(path), path.open("a") as log:
                log.write(json.dumps({"step": self.step, **{k: round(v, 7) for k, v in figures.items()}}) + "\n")
        progress.update(bar, completed=self.step)


def _write(state: dict[str, Any], path: Path) -> None:
    part = path.with_suffix(".part")
    with storage_errors(path):
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
