"""A bad network on purpose: a TCP proxy with delay, jitter, bandwidth, stalls, cuts and half-open connections.

`profile` says how a link behaves and when it changes, `faults` what breaks and when, `shaper` is the pure timing of one
direction, `proxy` the sockets around it, `control` a proxy in a process of its own, `cli` the command `outrider link`.
"""

from outrider_shared.emulator.faults import Fault, FaultKind, FaultSchedule
from outrider_shared.emulator.profile import LinkPlan, LinkProfile
from outrider_shared.emulator.proxy import LinkProxy, precise_loop

__all__ = ["Fault", "FaultKind", "FaultSchedule", "LinkPlan", "LinkProfile", "LinkProxy", "precise_loop"]
