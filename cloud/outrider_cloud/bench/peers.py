"""`outrider bench peers`: tokens per second of the engine and of every way in which transformers generates.

One model, one dtype, the same prompts, greedy. Times begin when every session has its first token, so that prompts do
not count. Speculation is at equal acceptance by construction (`acceptance`): drafts cost nobody anything, and what is
compared is what checking them costs. A peer that cannot do a case is told with its reason.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outrider_cloud.bench import transformers_peers as peers
from outrider_cloud.bench.acceptance import Replay
from outrider_cloud.bench.jobs import Job
from outrider_cloud.bench.rig import Rig, engine_config, random_prompts
from outrider_cloud.bench.shapes import random_model
from outrider_cloud.bench.transformers_peers import Decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from outrider_cloud.model.loading import LoadedModel

PLAIN, SPECULATIVE = "plain", "speculative"


@dataclass(frozen=True)
class Setting:
    """What is asked of everybody.

    Attributes:
        prompt: Tokens of each prompt.
        tokens: Of each answer.
        drafts: Of a chain.
        acceptance: Probability that a drafted token is right, given that those before it are.
        warmup, repeats: Runs.
    """

    prompt: int
    tokens: int
    drafts: int
    acceptance: float
    warmup: int
    repeats: int


class PeerBench:
    """The jobs, over one model that they share.

    Args:
        shape: Name of the model's shape.
        device: Where.
        dtype: Of the weights.
        sessions: Numbers of sessions at once.
        setting: See there.
    """

    def __init__(
        self, shape: str, device: torch.device, dtype: torch.dtype, sessions: Sequence[int], setting: Setting
    ) -> None:
        self._shape, self._device, self._dtype = shape, device, dtype
        self._sessions, self._setting = sessions, setting
        self._answers: dict[tuple[str, int], list[list[int]]] = {}

    def jobs(self) -> list[Job]:
        """Plain ones of a number of sessions first: the others replay their answers."""
        ways: list[tuple[str, str, Callable[[int], Decoded]]] = [
            ("outrider", PLAIN, self._ours),
            ("outrider", SPECULATIVE, self._ours_drafted),
            ("transformers generate, dynamic cache", PLAIN, self._dynamic),
            ("transformers generate, static cache" + self._compiled(), PLAIN, self._static),
            ("transformers generate_batch", PLAIN, self._batch),
            ("transformers assisted generation", SPECULATIVE, self._assisted),
        ]
        return [
            Job(f"{name}, {mode}, {n} sessions", functools.partial(self._measure, name, mode, way, n))
            for n in self._sessions
            for name, mode, way in ways
        ]

    @functools.cached_property
    def _loaded(self) -> LoadedModel:
        return random_model(self._shape, self._dtype, self._device)

    def _compiled(self) -> str:
        """It compiles by itself with such a cache, on a card only."""
        return " and compile" if self._device.type == "cuda" else " (not compiled on a CPU)"

    def _measure(self, name: str, mode: str, way: Callable[[int], Decoded], sessions: int) -> dict[str, Any]:
        told = {"peer": name, "mode": mode, "sessions": sessions}
        if way == self._assisted and sessions > 1:
            return {**told, "missing": "assisted generation takes one session at a time"}
        try:
            runs = [way(sessions) for _ in range(self._setting.warmup + self._setting.repeats)][self._setting.warmup :]
        except Exception as error:
            if name == "outrider":
                raise
            return {**told, "missing": f"{type(error).__name__}: {error}"}
        self._answers.setdefault((name, sessions), runs[-1].answers)
        rates = [run.tokens / run.seconds for run in runs]
        per_step = [run.tokens / run.steps / sessions for run in runs if run.steps]
        return {
            **told,
            "tokens_per_s": statistics.median(rates),
            "low_tokens_per_s": min(rates),
            "high_tokens_per_s": max(rates),
            "runs": len(rates),
            "tokens_per_step_and_session": statistics.median(per_step) if per_step else None,
        }

    def _prompts(self, sessions: int) -> list[list[int]]:
        return random_prompts(sessions, self._setting.prompt, self._loaded.vocabulary)

    @functools.cached_property
    def _rigs(self) -> dict[int, Rig]:
        return {}

    def _rig(self, sessions: int) -> Rig:
        """One for all runs with so many sessions: what it captures, it captures in the first."""
        if sessions not in self._rigs:
            self._rigs.clear()
            setting = self._setting
            config = engine_config(2 * sessions, setting.prompt + setting.tokens, setting.drafts)
            self._rigs[sessions] = Rig(self._loaded, self._device, config)
        return self._rigs[sessions]

    def _ours(self, sessions: int, replays: Sequence[Replay] = ()) -> Decoded:
        rig = self._rig(sessions)
        rig.open(self._prompts(sessions), self._setting.tokens)
        drafts = (lambda number, log: replays[number](log)) if replays else None
        times = []
        while not rig.done:
            times.append(rig.step(drafts))
        answers = [log[self._setting.prompt :] for log in rig.logs()]
        return Decoded(sum(t.tokens for t in times), sum(t.wall for t in times), len(times), answers)

    def _ours_drafted(self, sessions: int) -> Decoded:
        return self._ours(sessions, self._replays("outrider", sessions))

    def _replays(self, name: str, sessions: int) -> list[Replay]:
        setting = self._setting
        return [
            Replay(setting.prompt, answer, setting.drafts, setting.acceptance, number, self._loaded.vocabulary)
            for number, answer in enumerate(self._answers[name, sessions])
        ]

    def _dynamic(self, sessions: int) -> Decoded:
        return peers.generate(self._loaded, self._prompts(sessions), self._setting.tokens)

    def _static(self, sessions: int) -> Decoded:
        count = self._setting.tokens
        return peers.generate(self._loaded, self._prompts(sessions), count, cache_implementation="static")

    def _batch(self, sessions: int) -> Decoded:
        return peers.generate_batch(self._loaded, self._prompts(sessions), self._setting.tokens)

    def _assisted(self, sessions: int) -> Decoded:
        setting = self._setting
        replay = self._replays("transformers generate, dynamic cache", sessions)[0]
        return peers.assisted(self._loaded, self._prompts(sessions)[0], setting.tokens, setting.drafts, replay)


def ratios(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours over each peer, of the same mode and number of sessions."""
    ours = {(r["mode"], r["sessions"]): r["tokens_per_s"] for r in results if r.get("peer") == "outrider"}
    return [
        {"peer": r["peer"], "mode": r["mode"], "sessions": r["sessions"],
         "ours_over_it": ours[r["mode"], r["sessions"]] / r["tokens_per_s"]}
        for r in results
        if r.get("peer") != "outrider" and "tokens_per_s" in r and (r["mode"], r["sessions"]) in ours
    ]  # fmt: skip
