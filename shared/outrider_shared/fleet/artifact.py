"""What the signed metadata says about a pack beside its length and hash: whom it fits, and how to try it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from outrider_shared.fleet.codec import Bound, check
from outrider_shared.fleet.messages import Count, Name, Sha256

SUFFIX = ".tar"


@dataclasses.dataclass(frozen=True, slots=True)
class Golden:
    """A prompt and the tokens that the draft must find likeliest after it, one by one; token ids."""

    prompt: Annotated[tuple[Count, ...], Bound(1, 512)]
    expected: Annotated[tuple[Count, ...], Bound(1, 512)]


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """A way from another archive to this one: zstd with that archive as prefix. Only the result is trusted."""

    base: Sha256
    path: Name
    length: Annotated[int, Bound(1, 1 << 40)]


@dataclasses.dataclass(frozen=True, slots=True)
class ArtifactInfo:
    """The custom field of a target.

    Attributes:
        name: Of the pack.
        device_class: Devices of another class refuse it.
        tokenizer: Fingerprint; devices whose cloud uses another refuse it.
        vocabulary: Width of the logits.
        source: What model the draft was made from or for.
        golden: For the self-test.
        deltas: Shorter ways to the same bytes.
    """

    name: Name
    device_class: Name
    tokenizer: Sha256
    vocabulary: Count
    source: str = ""
    golden: tuple[Golden, ...] = ()
    deltas: tuple[Delta, ...] = ()

    def to_custom(self) -> dict[str, Any]:
        """As it stands in the metadata (JSON)."""
        return dataclasses.asdict(self)

    @classmethod
    def from_custom(cls, custom: object) -> ArtifactInfo:
        """Read and check it.

        Raises:
            ProtocolError: if a field is missing or malformed.
        """
        return check(cls, custom)
