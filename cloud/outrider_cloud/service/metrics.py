"""What the verifier did, for Prometheus. Names are kept stable: dashboards depend on them.

Nothing here names a device, a session or a text. Times of steps and tokens are counted by the engine; the service
counts streams, refusals, and how long first tokens took.
"""

from __future__ import annotations

from collections import Counter as Count
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from outrider_shared.errors import ConfigError
from outrider_shared.version import version

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outrider_cloud.engine.engine import Engine
    from outrider_cloud.engine.events import Usage
    from outrider_cloud.service.directory import Directory

_FIRST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ANSWER_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# Accepted and chosen tokens of one step.
_PER_STEP = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


class Metrics:
    """Counts of one service.

    Args:
        engine: Read at each scrape, never changed.
        directory: The live streams.
    """

    def __init__(self, engine: Engine, directory: Directory) -> None:
        registry = self.registry = CollectorRegistry()
        registry.register(_Engine(engine, directory))
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        Info(_name("build"), "What runs here", registry=registry).info({"version": version()})
        self._ended = _counter(registry, "sessions_ended", "Streams that ended, by how", "outcome")
        self._refused = _counter(registry, "refused", "Streams ended with an error, by its code", "code")
        self._tokens = _counter(registry, "answer_tokens", "Tokens of finished answers, by who proposed them", "origin")
        self._rows = _counter(registry, "draft_rows", "Draft rows run for finished answers, by who drafted", "origin")
        self._cached = _counter(registry, "cached_prompt_tokens", "Prompt tokens whose KV was there already")
        self._first = _histogram(registry, "time_to_first_token_seconds", "From Open to the first commit", _FIRST_S)
        self._answer = _histogram(registry, "answer_seconds", "From Open to the last commit", _ANSWER_S)
        self._per_step = _histogram(registry, "tokens_per_step", "Of a finished answer, in the mean", _PER_STEP)

    def refused(self, code: str) -> None:
        """A stream ended with that error."""
        self._refused.labels(code).inc()

    def left(self, outcome: str) -> None:
        """A stream ended: `finished`, `failed`, or `broken`, whose session is leased."""
        self._ended.labels(outcome).inc()

    def first_token(self, seconds: float) -> None:
        """The first commit of a new session."""
        self._first.observe(seconds)

    def answered(self, usage: Usage, tokens: int, seconds: float) -> None:
        """A session finished.

        Args:
            usage: What it cost, over all its streams to this service.
            tokens: Tokens that it generated, over all of them.
            seconds: Time of its last stream.
        """
        self._answer.observe(seconds)
        drafted = {"edge": usage.accepted, "lookup": usage.accepted_lookup, "model": usage.accepted_cloud}
        for origin, count in {**drafted, "target": max(0, tokens - sum(drafted.values()))}.items():
            self._tokens.labels(origin).inc(count)
        for origin, count in (("edge", usage.edge_rows), ("lookup", usage.lookup_rows), ("model", usage.cloud_rows)):
            self._rows.labels(origin).inc(count)
        self._cached.inc(usage.cached_tokens)
        if usage.steps:
            self._per_step.observe(tokens / usage.steps)


class Endpoint:
    """Serves the metrics over HTTP at `/metrics`, from a thread of its own.

    Args:
        metrics: What to serve.
        listen: HOST:PORT; port 0 takes a free one.

    Raises:
        ConfigError: if the address cannot be bound.
    """

    def __init__(self, metrics: Metrics, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), metrics.registry)
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics on {listen}: {error.strerror}", hint="--metrics HOST:PORT"
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Engine(Collector):
    """The engine's totals as they are at a scrape; one that runs meanwhile may be a step ahead of itself."""

    def __init__(self, engine: Engine, directory: Directory) -> None:
        self._engine, self._directory = engine, directory

    def collect(self) -> Iterable[Metric]:
        """All families."""
        stats, pool = self._engine.stats, self._engine.pool
        yield _total("steps", "Steps run", stats.steps)
        yield _total("rows", "Rows run, padding aside", stats.rows)
        yield _total("tokens", "Tokens committed", stats.committed)
        yield _total("preemptions", "Sessions put aside for want of KV", stats.preemptions)
        yield _total("step_seconds", "Time inside steps that had work", stats.total_s)
        yield _total("forward_seconds", "Of it, inside the model's forward", stats.forward_s)
        yield _total("draft_seconds", "Time spent on drafts of the cloud's own", stats.draft_s)
        yield _gauge("row_budget", "Most rows of a step", self._engine.config.row_budget)
        blocks = GaugeMetricFamily(_name("kv_blocks"), "Blocks of KV memory by state", labels=["state"])
        used, cached = pool.used, pool.cached
        for state, count in (("used", used), ("cached", cached), ("free", pool.total - used - cached)):
            blocks.add_metric([state], count)
        yield blocks
        sessions = GaugeMetricFamily(_name("sessions"), "Sessions by state", labels=["state"])
        for state, count in Count(s.state.value for s in list(self._engine.sessions.values())).items():
            sessions.add_metric([state], count)
        yield sessions
        yield _gauge("streams", "Live streams", len(self._directory))


def _name(name: str) -> str:
    return f"outrider_cloud_{name}"


def _total(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(_name(name), text, value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(_name(name), text, value)


def _counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Any:
    return Counter(_name(name), text, labels, registry=registry)


def _histogram(registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(_name(name), text, buckets=buckets, registry=registry)
