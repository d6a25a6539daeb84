"""An answer decoded with trees of drafts that know it: the right branch hangs behind wrong ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_cloud.engine.events import Request
from outrider_shared.ids import SessionId
from outrider_shared.packing import pack_tokens, pack_varints
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.engine.engine import Engine
    from outrider_shared.sampling import SamplingParams

NAME = SessionId("drafted0")


def drafted_by_trees(
    engine: Engine, prompt: Sequence[int], params: SamplingParams, expected: Sequence[int]
) -> tuple[list[int], int]:
    """The answer, and the steps that it took."""
    vocabulary, steps = engine.runner.loaded.vocabulary, 0
    request = Request(NAME, tuple(prompt), len(expected), params, ignore_eos=True, own_drafts=False)
    engine.open(request, lambda _: None)
    session = engine.sessions[NAME]
    while session.finish is None:
        done = len(session.log) - len(prompt)
        right = list(expected[done : done + 3])
        if len(right) == 3:
            wrong = [(token + 1) % vocabulary for token in right]
            tokens = [wrong[0], right[0], wrong[1], right[1], right[2]]
            message = pb.Draft(tokens=pack_tokens(tokens, vocabulary), count=5, anchor=len(session.log))
            message.parents = pack_varints([0, 0, 1, 2, 1])
            engine.draft(NAME, message)
        engine.step()
        steps += 1
    return session.log[len(prompt) :], steps
