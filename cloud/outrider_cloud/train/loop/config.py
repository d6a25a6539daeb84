"""How long and how fast a run learns: batches of a step, rates, checks on the way."""

import math
from dataclasses import dataclass

OPTIMIZERS = ("muon", "adamw")


@dataclass(frozen=True)
class FitConfig:
    """`steps` may be changed when resuming: the learning rate depends on it only in the final decay.

    Attributes:
        micro_batches: Batches of one step, shared out among the processes.
        patience: Validations without a better `watch` after which the run ends, with the best weights; 0: never.
        watch: Figure of validation that early stopping looks at; less is better.
        bfloat16: Compute in bfloat16 (weights stay in float32).
        optimizer: `muon` for the matrices inside the layers, or `adamw` for all.
        compile: Let torch compile the model, see `compiling`.
    """

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
    micro_batches: int = 1
    patience: int = 0
    watch: str = "valid"
    bfloat16: bool = True
    optimizer: str = "muon"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.decay_share <= 1:
            raise ValueError(f"steps {self.steps} and decay_share {self.decay_share} make no schedule")
        if min(self.micro_batches, self.log_every, self.validate_every, self.checkpoint_every) < 1:
            raise ValueError("micro_batches, log_every, validate_every and checkpoint_every must be at least 1")
        rates = {name: getattr(self, name) for name in ("muon_lr", "adam_lr", "weight_decay", "clip_norm")}
        wrong = [f"{name} {value}" for name, value in rates.items() if not 0 <= value < math.inf]
        if wrong or min(self.warmup_steps, self.patience) < 0:
            raise ValueError(f"{', '.join(wrong) or 'warmup_steps or patience'} must be a number from 0 on")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r} is none of {', '.join(OPTIMIZERS)}")

    def rate(self, step: int) -> float:
        """The learning rate's factor at a step, in [0, 1]."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay = max(1.0, self.decay_share * self.steps)
        return min(warm, (self.steps - step) / decay, 1.0)
