"""A cloud and its devices in virtual time: the product's own code, a recorded model pair, an emulated link, no waiting.

Everything that decides is the product's: the edge's `Client` with its loop, plan, policy and calibration; the cloud's
`SessionHandler`, `Engine` and `schedule`. What takes time is told instead of spent: a draft pass, a step of the target,
a byte on the link. Time jumps from event to event, so a minute of decoding takes a second, busy machines change
nothing, and the same scenario gives the same figures always.

    from support.virtual import Scenario, simulate
    figures = simulate(Scenario(method=methods.method("ours-auto"), link=LinkProfile(rtt_s=0.05), step=StepCost(0.025)))
    figures["tokens_per_s"], figures["busy_ms_per_token"]

or, as a command over a grid (see `--help`):

    PYTHONPATH=cloud:edge:shared:tests python -m support.virtual --rtt 0,50 --step-ms 25 --methods plain,ours-auto

To try another draft policy, give a `Method` with it; to change the link on the way, give `changes` (seconds, profile).

    clock    the event loop whose time is virtual, and the shim that product modules read the time from meanwhile
    pair     what target and draft say, recorded from the bundled pair (`python -m support.virtual.record` writes it)
    cloud    the engine with scripted tensors, beside an event loop that is not a thread
    link     gRPC's in-memory twin with delay, jitter and rate
    world    a scenario and its figures
    faults   a device between two clouds that fail in every way
"""

from support.virtual.cloud import StepCost
from support.virtual.world import Scenario, simulate

__all__ = ["Scenario", "StepCost", "simulate"]
