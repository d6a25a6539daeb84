"""What a further node has to bring: the one rule by which drafts are made and sent. Pure.

A node is worth its reach, the probability that it is on the committed path: so many tokens it is expected to bring.
What it costs is told in tokens, too, at the pace at which the session gets them (`Estimates.tokens_per_s`):

    bytes   `NODE_BYTES` on the link: at its rate they hold up what comes behind, and each has a price of its own
    rows    places in the cloud; the scarcer the cloud says they are and the more the session has taken, the dearer
    time    of a pass. While the cloud may wait for the burst, the answer waits as well. While a verdict is on its way
            anyway a pass is nearly free: it can but hold up the answer to a verdict that comes in the middle of it

A node is drafted and sent while it is worth what it costs. No floor is above `MOST`, so some draft is always made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider_edge.session.estimates import Estimates

NODE_BYTES = 2.0
# Of a message besides its nodes.
MESSAGE_BYTES = 24.0
# Tokens that a byte up has to bring, on however wide a link: data plans and radios have their price.
BYTE_PRICE = 0.04
# Part of a burst's time that a cloud which does not hold for drafts loses by them: its steps go on meanwhile.
_AWAITED_SHARE = 0.5
# Part of a pass that is left when a verdict comes in the middle of it.
_REST_SHARE = 0.5
_TOKENS_PER_S = 50.0  # before it is known
MOST = 0.5
# Nodes of a usual message, and the least that it is cut to: fewer would be less than the bytes that come before them.
_USUAL_NODES, _LEAST_NODES = 8, 16
# Part of a step's time that a longer message may take on the way up.
_ON_THE_WAY = 0.5


@dataclass(frozen=True, slots=True)
class Floors:
    """The least reach that is worth its cost.

    Attributes:
        node: Of a node that is sent; it needs no pass of its own.
        spare: Of a tip, for a pass while a verdict is on its way.
        awaited: Of a tip, for a pass while the cloud may wait for the burst.
    """

    node: float
    spare: float
    awaited: float


def message_s(known: Estimates) -> float:
    """How long a usual message occupies the way up."""
    return (MESSAGE_BYTES + _USUAL_NODES * NODE_BYTES) * known.uplink.byte_s


def per_message(known: Estimates, most: int) -> int:
    """Nodes that a message may have, at most `most`.

    All of a message arrives with its last byte, and what comes of a verdict meanwhile has to wait behind it.
    """
    byte_s = known.uplink.byte_s
    if not byte_s or known.step_s is None:
        return most
    fits = (_ON_THE_WAY * known.step_s / byte_s - MESSAGE_BYTES) / NODE_BYTES
    return min(most, max(_LEAST_NODES, round(fits)))


def crowding(pending: int, max_nodes: int, unloaded: int) -> float:
    """The price of a place in the cloud, in tokens: 0 where rows are plenty, near 1 for the last of scarce ones.

    Args:
        pending: Nodes of the session that the cloud holds.
        max_nodes: As many as it takes now: its hint.
        unloaded: As many as it takes without load.
    """
    scarcity = 1.0 - min(max_nodes, unloaded) / max(1, unloaded)
    return scarcity * min(1.0, pending / max(1, max_nodes)) ** 2


def floors(known: Estimates, place: float, *, held: bool) -> Floors:
    """The floors for a link, a drafter and a cloud as they are now.

    Args:
        known: What was measured of them.
        place: Price of a place in the cloud (`crowding`).
        held: Whether the cloud waits for drafts, however long they take.
    """
    pace = known.tokens_per_s or _TOKENS_PER_S
    pass_s = known.pass_s or 0.0
    node = NODE_BYTES * (BYTE_PRICE + pace * known.uplink.byte_s) + place
    cut_short = 1.0 if known.step_s is None else min(1.0, pass_s / known.step_s)
    spare = pace * pass_s * cut_short * _REST_SHARE
    awaited = pace * pass_s * (1.0 if held else _AWAITED_SHARE)
    return Floors(min(MOST, node), min(MOST, max(node, spare)), min(MOST, max(node, awaited)))
