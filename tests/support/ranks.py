"""One of four processes that share a model: `python -m support.ranks FOLDER STORE RANK`; rank 0 prints what it found.

Four ranks serve with four shards, then two of them with four and with two; each time plainly and with drafted trees.
Before that two of them record sums as CUDA graphs would be, of which one rank cannot record the second.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from structlog.testing import capture_logs

from outrider_cloud.build import build_runner
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.cuda_graphs import Graphs, Uncapturable
from outrider_cloud.engine.engine import Engine
from outrider_cloud.generate import generate
from outrider_cloud.parallel.peers import Channel, Followers, follow
from outrider_cloud.parallel.watch import Failure
from outrider_cloud.parallel.world import World
from outrider_shared.sampling import SamplingParams
from support.rig import Rig

if TYPE_CHECKING:
    from outrider_cloud.engine.runner import ModelRunner
    from outrider_cloud.model.loading import LoadedModel

CONFIG = EngineConfig(kv_tokens=512, exact=True, buckets=(16,), max_draft_rows=8)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]
PARAMS = (SamplingParams(), SamplingParams(temperature=1.0, top_p=0.95, seed=5))
TOKENS = 8


def answers(runner: ModelRunner, loaded: LoadedModel) -> dict[str, object]:
    """Tokens plainly and with trees, and the bits of the logits of one step."""
    found: dict[str, object] = {"plain": [], "drafted": [], "steps": []}
    for params in PARAMS:
        plain = generate(Engine(runner, CONFIG), PROMPT, params, TOKENS, ignore_eos=True).tokens
        tokens, steps = drafted(runner, loaded, params, plain)
        found["plain"].append(plain)
        found["drafted"].append(tokens)
        found["steps"].append(steps)
    engine = Engine(runner, CONFIG)
    step = {}
    runner_run = runner.run
    runner.run = lambda batch, bucket=0: step.setdefault("logits", runner_run(batch, bucket))
    generate(engine, PROMPT[:9], PARAMS[0], 1, ignore_eos=True)
    del runner.run
    found["bits"] = step["logits"].view(torch.int32).tolist()
    return found


def drafted(runner: ModelRunner, loaded: LoadedModel, params: SamplingParams, expected: list[int]):
    """The same answer with trees whose right branch is never the first, so KV is moved; and its steps."""
    rig = Rig(loaded, kv_tokens=512)
    rig.engine = Engine(runner, CONFIG, lambda: rig.now)
    session = rig.open(PROMPT, TOKENS, params, ignore_eos=True)
    while rig.engine.sessions[session].finish is None:
        done = len(rig.engine.sessions[session].log) - len(PROMPT)
        right = expected[done : done + 3]
        if len(right) == 3:
            wrong = [(token + 1) % loaded.vocabulary for token in right]
            tree = [wrong[0], right[0], wrong[1], right[1], right[2]]
            rig.draft(session, tree, parents=[0, 0, 1, 2, 1], anchor=len(PROMPT) + done)
        rig.engine.step()
    ended = rig.engine.sessions[session]
    return ended.log[len(PROMPT) :], ended.usage.steps


class Recorder:
    """In the place of CUDA's: a recorded sum adds over a group of its own, so it never meets one that is launched.

    That is NCCL's rule, too: what one rank replays and another launches waits for ever.
    """

    def __init__(self, refused: int, group: dist.ProcessGroup) -> None:
        self.refused, self.group, self.recorded = refused, group, 0

    def __call__(self, compute):
        self.recorded += 1
        if self.recorded == self.refused:
            raise Uncapturable("operation not permitted when stream is capturing")
        return lambda: compute(self.group)


def captured(world: World, graphs_of_two: dist.ProcessGroup) -> dict[str, object]:
    """Three sums over two ranks, of which rank 1 cannot record the second: how each ran here, and what came of it."""
    recorder = Recorder(2 if world.rank == 1 else 0, graphs_of_two)
    graphs = Graphs(world.agree, recorder)

    def compute(number: int):
        def added(group: dist.ProcessGroup = world.group) -> tuple[str, float]:
            part = torch.tensor([float(number + world.rank)])
            dist.all_reduce(part, group=group)
            return "launched" if group is world.group else "replayed", part.item()

        return added

    with capture_logs() as logs:
        steps = [graphs(compute(number)) for number in (10, 20, 30)]
    ran = [step() for step in (*steps, steps[0])]
    return {"ran": ran, "recorded": recorder.recorded, "reasons": [log["reason"] for log in logs]}


def main(folder: str, store: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=4)
    pair, graphs_of_two = dist.new_group([0, 1]), dist.new_group([0, 1])
    found = {}
    if rank < 2:
        told = [None, None]
        dist.all_gather_object(told, captured(World(rank, 2, 2, True, pair), graphs_of_two), group=pair)
        found["captures"] = told
    for name, ranks, shards, group in (("4x4", 4, 4, None), ("2x4", 2, 4, pair), ("2x2", 2, 2, pair)):
        if rank >= ranks:
            continue
        runner = build_runner(folder, CONFIG, world=World(rank, ranks, shards, True, group))
        channel = Channel(group)
        if rank:
            follow(channel, runner)
            continue
        runner.peers = followers = Followers(channel, Failure(lambda: None))
        found[name] = answers(runner, runner.loaded)
        followers.stop()
        alone = build_runner(folder, CONFIG, world=World(shards=shards))
        found[f"1x{shards}"] = answers(alone, alone.loaded)
    if rank == 0:
        whole = build_runner(folder, CONFIG)
        found["whole"] = answers(whole, whole.loaded)
        sys.stdout.write(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
