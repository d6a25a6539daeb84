"""Kernels that CuPy launches inside torch's graphs: recorded where they should be, replayed over new contents."""

from __future__ import annotations

import threading

import torch

from outrider_cloud.engine.cuda_graphs import Graphs
from outrider_cloud.engine.static import StaticArrays
from outrider_cloud.kernels.cuda.layers import CudaLayers
from outrider_cloud.kernels.cuda.sampling import CudaSampler, edit_table, records
from outrider_cloud.kernels.layers import TorchLayers
from outrider_shared.sampling import SamplingParams


def test_a_graph_computes_again_from_what_its_buffers_hold(place):
    """A launch on a stream that was remembered from outside would have recorded nothing."""
    x, weight = (torch.rand(shape, device=place.device).bfloat16() for shape in ((8, 256), (256,)))
    replay = place.capture(lambda: CudaLayers(place.launcher).rms_norm(x, None, weight, 1e-5))
    for _ in range(3):
        x.copy_(torch.randn(8, 256))
        expected = TorchLayers().rms_norm(x, None, weight, 1e-5)
        assert torch.allclose(replay().float(), expected.float(), rtol=2**-6, atol=2**-7)


def test_a_cluster_with_much_shared_memory_is_captured(place):
    """The sampling kernel: blocks in clusters, more shared memory than is given unasked."""
    vocabulary = 151936 if place.on_card else 3000
    sampler = CudaSampler(place.launcher, **({} if place.on_card else {"ranks": 2, "threads": 64}))
    logits = torch.randn(4, vocabulary, device=place.device).bfloat16()
    given = records([1, 2, 3, 4], [SamplingParams()] * 4), torch.tensor([4], dtype=torch.int32), edit_table([])
    table, count, edits = (torch.as_tensor(part).to(place.device) for part in given)
    replay = place.capture(lambda: sampler.launch(logits, table, count, edits, None, 0).chosen)
    for _ in range(3):
        logits.copy_(torch.randn(4, vocabulary))
        assert replay()[:, 0].tolist() == logits.float().argmax(-1).tolist()


def test_graphs_of_one_pool_are_replayed_in_any_order(card):
    """Buckets share memory: what one returned holds until another runs, and none runs over another's inputs."""
    graphs, sizes = Graphs(), (256, 64, 8)
    inputs = {rows: torch.zeros(rows, 1024, device=card.device) for rows in sizes}
    before = torch.cuda.memory_reserved(card.device)
    replays = {rows: graphs(lambda x=inputs[rows]: ((x + 1) * 2).cumsum(1) - x) for rows in sizes}
    assert torch.cuda.memory_reserved(card.device) - before <= 64 << 20
    for turn, rows in enumerate((8, 256, 64, 256, 8, 8, 64)):
        inputs[rows].fill_(turn)
        expected = torch.arange(1, 1025, device=card.device) * 2.0 * (turn + 1) - turn
        assert bool((replays[rows]() == expected).all())


def test_what_cannot_be_captured_is_computed_every_time(card):
    """A look at the device's result on the host ends a capture; the stream and later work are none the worse."""
    x, graphs = torch.ones(4, device=card.device), Graphs()
    doubled = graphs(lambda: x * 2 if x.sum().item() > 0 else x)
    tripled = graphs(lambda: x * 3)
    for value in (1.0, 5.0):
        x.fill_(value)
        assert doubled().tolist() == [2 * value] * 4
        assert tripled().tolist() == [3 * value] * 4
    captured = Graphs()(lambda: x * 4)
    x.fill_(2.0)
    assert captured().tolist() == [8.0] * 4


def test_other_threads_may_use_the_card_while_a_graph_is_captured(place):
    """The service's threads do; hence the thread-local mode of captures."""
    stop, failed = threading.Event(), []

    def work():
        try:
            while not stop.is_set():
                torch.ones(1 << 20, device=place.device).sum().item()
        except Exception as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    x, weight = (torch.rand(shape, device=place.device).bfloat16() for shape in ((8, 256), (256,)))
    thread = threading.Thread(target=work)
    thread.start()
    try:
        replays = [place.capture(lambda: CudaLayers(place.launcher).rms_norm(x, None, weight, 1e-5)) for _ in range(5)]
        assert all(torch.equal(replay(), replays[0]()) for replay in replays)
    finally:
        stop.set()
        thread.join()
    assert not failed


def test_uploads_that_nobody_waits_for_are_not_overtaken(place):
    """Many steps in a row without a wait: each sees its own metadata, though all share one buffer of the host."""
    arrays = StaticArrays({"few": 64, "many": 1 << 18}, place.device)
    seen = []
    for step in range(50):
        arrays.write("few", [step] * 64)
        arrays.write("many", [step] * (1 << 18))
        arrays.upload()
        seen.append((arrays["few"].clone(), arrays["many"].clone()))
    for step, (few, many) in enumerate(seen):
        assert bool((few == step).all())
        assert bool((many == step).all())
