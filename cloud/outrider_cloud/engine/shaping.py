"""Which changes the rows of a step get before a token is chosen: each row's own path decides, drafted tokens included.

Sessions that ask for none cost one look at a flag. It is called before the step's forward is launched, so the time that
penalties and grammar masks take is added to the step, on every device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_shared.sampling.shape_torch import Shaping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.engine.schedule import Work
    from outrider_cloud.engine.session import Session
    from outrider_shared.errors import GrammarError


class Shaper:
    """Lays out the changes of each step.

    Args:
        eos: The model's end tokens.
    """

    def __init__(self, eos: frozenset[int]) -> None:
        self._eos = eos

    def lay_out(self, works: Sequence[Work]) -> tuple[Shaping, dict[int, GrammarError]] | None:
        """The changes of a step; None if no row needs any.

        Returns:
            The changes by sampled row, and the rows for which a grammar found no answer, with the reason.
        """
        if not any(work.session.shaped and work.decodes for work in works):
            return None
        faults: dict[int, GrammarError] = {}
        shaping, row = Shaping(), 0
        for work in works:
            if not work.decodes:
                continue
            if work.session.shaped:
                self._add(work, row, shaping, faults)
            row += 1 + len(work.nodes)
        return shaping, faults

    def _add(self, work: Work, first: int, shaping: Shaping, faults: dict[int, GrammarError]) -> None:
        session, params = work.session, work.session.request.params
        paths = _paths(work)
        if session.counts is not None:
            session.counts.follow(session.log)
            for row, path in enumerate(paths, first):
                shaping.penalties.append((row, *session.counts.along(path), params))
        if params.logit_bias:
            shaping.biases.extend((row, params.logit_bias) for row in range(first, first + len(paths)))
        ends = self._ends(session)
        for row, path in enumerate(paths, first):
            if ends and session.generated + len(path) < session.request.min_tokens:
                shaping.banned.append((row, ends))
        if session.matcher is not None:
            offset_of = {id(node): offset for offset, node in enumerate(work.nodes, 1)}
            nodes = [(node.token, offset_of.get(id(node.parent), 0)) for node in work.nodes]
            masks, errors = session.matcher.masks(session.log[len(session.request.prompt) :], nodes)
            shaping.masks.extend((first + offset, mask) for offset, mask in masks.items())
            faults.update((first + offset, error) for offset, error in errors.items())

    def _ends(self, session: Session) -> list[int]:
        request = session.request
        return [*request.stop, *(() if request.ignore_eos else self._eos)] if request.min_tokens else []


def _paths(work: Work) -> list[list[int]]:
    """Of the root row and each node: the drafted tokens on its path, itself included."""
    paths: list[list[int]] = [[]]
    of: dict[int, list[int]] = {}
    for node in work.nodes:
        of[id(node)] = [*of.get(id(node.parent), ()), node.token]
        paths.append(of[id(node)])
    return paths
