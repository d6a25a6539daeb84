"""What names the beginning of a prompt in place of its tokens.

A log key is a secret of one device and one cloud: 16 random bytes that the cloud gave for one session. It says which
log; the digest, keyed with it, says that both sides mean the same tokens of that log. Nothing can be learnt or used
without the key, whoever guesses a prompt.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY_BYTES = 16
_DIGEST_BYTES = 8


def prefix_digest(log_key: bytes, tokens: Sequence[int]) -> bytes:
    """BLAKE2b of the ids as 32-bit little-endian integers, keyed; 8 bytes."""
    data = np.asarray(tokens, "<u4").tobytes()
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, key=log_key).digest()
