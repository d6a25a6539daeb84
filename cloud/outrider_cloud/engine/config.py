"""What an operator can set of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from outrider_shared.errors import ConfigError
from outrider_shared.wire import NODES_BEFORE_OPENED


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and policies, validated on construction.

    Attributes:
        exact: Give every row the same bits whatever surrounds it (design, section 6), by padding steps to fixed numbers
            of rows. Costs compute on a CPU, see docs/decisions/0002-exact-on-cpu.md.
        buckets: In exact mode each step is padded to the smallest of these numbers of rows that it fits, ascending.
        row_budget: Most rows of a step otherwise.
        kv_tokens: Tokens whose keys and values are held, over all sessions and the prefix cache.
        block_size: Tokens in a block, the unit of KV memory and of prefix sharing.
        prefill_share: Part of the row budget that waiting prompts get at least while others decode.
        max_sessions: Open sessions, running or waiting.
        max_nodes: Pending draft nodes of one session.
        max_draft_rows: Draft rows of one session in one step.
        hold_s: How long a session with pace `hold` waits for drafts before it decodes a token by itself.
        lease_s: How long a dropped session's KV is kept for its return.
    """

    exact: bool = False
    buckets: tuple[int, ...] = (4, 8, 16, 32, 64)
    row_budget: int = 256
    kv_tokens: int = 32768
    block_size: int = 16
    prefill_share: float = 0.5
    max_sessions: int = 256
    max_nodes: int = 256
    max_draft_rows: int = 16
    hold_s: float = 0.25
    lease_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)) or self.buckets[0] < 1:
            raise ConfigError(f"buckets are {self.buckets}", hint="give numbers of rows, from 1 on, ascending")
        for name in ("row_budget", "kv_tokens", "block_size", "max_sessions", "max_nodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", hint="it must be at least 1")
        if self.max_nodes < NODES_BEFORE_OPENED:
            raise ConfigError(f"max_nodes is {self.max_nodes}", hint=f"devices count on at least {NODES_BEFORE_OPENED}")
        if self.kv_tokens < self.block_size:
            raise ConfigError(f"kv_tokens {self.kv_tokens} is less than one block of {self.block_size}")
        if not 0.0 < self.prefill_share <= 1.0:
            raise ConfigError(f"prefill_share is {self.prefill_share}", hint="it must be in (0, 1]")
        for name in ("max_draft_rows", "hold_s", "lease_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", hint="it must not be negative")

    @property
    def blocks(self) -> int:
        """Blocks in the pool."""
        return self.kv_tokens // self.block_size

    @property
    def rows(self) -> int:
        """Most rows of a step."""
        return self.buckets[-1] if self.exact else self.row_budget
