"""How steps are captured, on torch's interface without a card: one pool, one stream, and what cannot be captured."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from structlog.testing import capture_logs

from outrider_cloud.engine.cuda_graphs import Graphs


class Cuda:
    """In the place of torch.cuda: notes which stream and pool captures use; nothing is recorded."""

    def __init__(self):
        self.streams, self.pools, self.current, self.captures, self.fails = 0, 0, "main", [], None

    def stream(self):
        self.streams += 1
        return SimpleNamespace(name=f"stream {self.streams}", wait_stream=lambda _: None)

    def pool(self):
        self.pools += 1
        return self.pools

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        self.captures.append((pool, stream.name, capture_error_mode))
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            if self.fails is not None:  # as torch does, which then leaves its stream the current one
                raise self.fails
        self.current = before


@pytest.fixture
def cuda(monkeypatch):
    fake = Cuda()
    monkeypatch.setattr(torch.cuda, "Stream", fake.stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", fake.pool)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(name="main", wait_stream=lambda _: None))
    monkeypatch.setattr(torch.cuda, "stream", fake.on)
    monkeypatch.setattr(torch.cuda, "graph", fake.graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    return fake


def test_all_graphs_share_a_pool_and_the_stream_of_their_warm_up(cuda):
    """cuBLAS keeps a workspace for each stream: warmed up on another one, a capture would take it from the pool."""
    graphs, seen = Graphs(), []
    replays = [graphs(lambda size=size: seen.append((size, cuda.current)) or size) for size in (256, 64, 8)]
    assert cuda.captures == [(1, "stream 1", "thread_local")] * 3
    assert seen == [(size, "stream 1") for size in (256, 64, 8) for _ in range(3)]
    assert [replay() for replay in replays] == [256, 64, 8]
    assert len(seen) == 9  # a replay computes nothing on the host


def test_what_cannot_be_captured_is_computed_with_a_warning(cuda):
    """The service comes up; later buckets are not tried again, and the log says once why it is slower."""
    cuda.fails = RuntimeError("operation failed due to a previous error during capture")
    graphs, count = Graphs(), []

    def looks_at_a_result():
        count.append(1)
        if cuda.current != "main" and len(count) == 3:
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")
        return len(count)

    with capture_logs() as logs:
        steps = [graphs(looks_at_a_result) for _ in range(3)]
    assert len(cuda.captures) == 1
    assert cuda.current == "main"
    done = len(count)
    assert [step() for step in steps] == [done + 1, done + 2, done + 3]
    (log,) = logs
    assert log["log_level"] == "warning"
    assert "cannot be captured in a CUDA graph" in log["event"]
    assert log["reason"] == "operation not permitted when stream is capturing"


@pytest.mark.parametrize("ending", [None, RuntimeError("operation failed due to a previous error during capture")])
def test_memory_that_ends_in_a_capture_is_no_reason_to_go_on_without(cuda, ending):
    """Whether the capture could be ended or not."""
    cuda.fails = ending

    def too_large():
        if cuda.captures:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        Graphs()(too_large)


def test_a_rank_that_fails_for_good_tells_the_others_first():
    """They would wait for its word; then they launch, and are ended with it."""
    said = []

    def fails(compute):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        Graphs(lambda own: said.append(own) or own, fails)(lambda: 1)
    assert said == [False]


def test_a_fault_of_the_computation_itself_is_told_as_it_is(cuda):
    def broken():
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match="shapes differ"):
        Graphs()(broken)
    assert cuda.captures == []
