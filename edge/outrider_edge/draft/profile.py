"""Which of several packs of one draft is best on this device: measured pass times, measured acceptance, one formula.

    tokens/s  =  1 / ( sum_r passes(r) * T(r)  +  (step + round trip) / S )

S is how many tokens a cloud step commits and passes(r) how many draft passes of r rows a committed token takes, both
measured by `outrider train eval --write` under the real coupling and kept in the pack; T(r) is measured here, through
the runtime that drafts. The sum counts draft and cloud one after the other, as if nothing was drafted ahead: it
ranks packs the same way on any link, save that a slow link rewards acceptance and a fast one quick passes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider_edge.draft.timing import pass_times, seconds_for
from outrider_shared.drafting.runtime import DraftModel
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_shared.packs import Pack

FORMAT = 1


@dataclass(frozen=True)
class Candidate:
    """One pack's figures on this device.

    Attributes:
        path: The pack.
        precision: How its weights are stored.
        size_bytes: Of all its files.
        pass_us: Microseconds of a pass, by rows.
        tokens_per_step: As its manifest has it.
        draft_us_per_token: Draft time that a committed token takes.
        tokens_per_s: By the formula above.
    """

    path: str
    precision: str
    size_bytes: int
    pass_us: dict[str, float]
    tokens_per_step: float
    draft_us_per_token: float
    tokens_per_s: float


@dataclass(frozen=True)
class Acceptance:
    """What a manifest tells of a pack: tokens per cloud step, and draft passes per token by rows."""

    tokens_per_step: float
    passes: dict[int, float]


def acceptance_of(pack: Pack, temperature: float) -> Acceptance:
    """A pack's measured acceptance with trees, at the measured temperature nearest to the asked one.

    Raises:
        ConfigError: the pack was never evaluated.
    """
    measured = pack.manifest.evaluation.get("pair", {}).get("acceptance", ())
    cells = [cell for cell in measured if cell["shape"] == "tree"]
    if not cells:
        raise ConfigError(
            f"{pack.path} has no measured acceptance",
            hint=f"outrider train eval --pack {pack.path} --write measures it",
        )
    cell = min(cells, key=lambda each: abs(each["temperature"] - temperature))
    passes = {int(rows): float(count) for rows, count in cell["passes_per_token"].items()}
    return Acceptance(float(cell["tokens_per_step"]), passes)


def profile(
    packs: Sequence[Pack], *, temperature: float, cloud_s: float, threads: int = 1, repeats: int = 200
) -> list[Candidate]:
    """Measure the packs on this device; the best comes first.

    Args:
        packs: Packs of drafts for one target.
        temperature: The acceptance to reckon with.
        cloud_s: Time of a cloud step and a round trip.
        threads: CPU threads of a pass.
        repeats: Passes of each number of rows.

    Raises:
        ConfigError: a pack was never evaluated, or packs are for other tokenizers.
        PackError: a pack is damaged.
    """
    tokenizers = {pack.manifest.tokenizer_fingerprint for pack in packs}
    if len(tokenizers) > 1:
        raise ConfigError("these packs have different tokenizers: they are not drafts for one target")
    accepted = [acceptance_of(pack, temperature) for pack in packs]
    times = pass_times([DraftModel.load(pack, threads=threads) for pack in packs], repeats=repeats)
    found = [_candidate(*each, cloud_s) for each in zip(packs, accepted, times, strict=True)]
    return sorted(found, key=lambda candidate: -candidate.tokens_per_s)


def expected_rate(accepted: Acceptance, times: dict[int, float], cloud_s: float) -> tuple[float, float]:
    """(draft seconds per committed token, tokens per second) by the formula above; times in seconds by rows."""
    draft_s = sum(count * seconds_for(rows, times) for rows, count in accepted.passes.items())
    return draft_s, 1 / (draft_s + cloud_s / accepted.tokens_per_step)


def write_profile(path: Path, candidates: Sequence[Candidate], setting: dict[str, Any]) -> None:
    """Keep the choice and its numbers; `--draft` takes such a file in place of a pack.

    Raises:
        ConfigError: the file cannot be written.
    """
    kept = {
        "format": FORMAT,
        "pack": str(Path(candidates[0].path).resolve()),
        "setting": setting,
        "candidates": [asdict(candidate) for candidate in candidates],
    }
    try:
        path.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def chosen_pack(path: Path) -> Path:
    """The pack that a profile chose.

    Raises:
        ConfigError: the file is no profile.
    """
    try:
        kept = json.loads(path.read_bytes())
        if kept["format"] != FORMAT:
            raise ValueError(f"format {kept['format']}")
        return Path(kept["pack"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no profile: {error!r}", hint="`outrider edge profile` writes one") from error


def _candidate(pack: Pack, accepted: Acceptance, times: dict[int, float], cloud_s: float) -> Candidate:
    draft_s, rate = expected_rate(accepted, times, cloud_s)
    return Candidate(
        path=str(pack.path),
        precision=str(pack.manifest.precision),
        size_bytes=sum(entry.size_bytes for entry in pack.manifest.files.values()),
        pass_us={str(rows): round(seconds * 1e6, 1) for rows, seconds in times.items()},
        tokens_per_step=accepted.tokens_per_step,
        draft_us_per_token=round(draft_s * 1e6, 1),
        tokens_per_s=round(rate, 2),
    )
