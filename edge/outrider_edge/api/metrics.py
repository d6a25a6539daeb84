"""What the daemon did, for Prometheus. Names are kept stable: dashboards depend on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from outrider_shared.version import version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from outrider_edge.api.answer_text import Told
    from outrider_edge.api.choices import End

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCIES_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters of one daemon, in a registry of their own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        ProcessCollector(registry=registry)
        Info("outrider_edge_build", "What runs here", registry=registry).info({"version": version()})
        self.requests = Counter("outrider_edge_requests", "Requests", ["route", "status"], registry=registry)
        self.tokens = Counter("outrider_edge_tokens", "Tokens told, by origin", ["origin"], registry=registry)
        self.drafted = Counter("outrider_edge_drafted_tokens", "Nodes sent to the cloud", registry=registry)
        self.accepted = Counter("outrider_edge_accepted_tokens", "Of them, committed", registry=registry)
        self.cloud_steps = Counter("outrider_edge_cloud_steps", "Engine steps that committed", registry=registry)
        self.sent = Counter("outrider_edge_uplink_bytes", "Message bytes to the cloud", registry=registry)
        self.received = Counter("outrider_edge_downlink_bytes", "Message bytes from the cloud", registry=registry)
        self.reconnects = Counter("outrider_edge_reconnects", "Streams opened beyond the first", registry=registry)
        self.swaps = Counter("outrider_edge_pack_swaps", "Draft packs put in place", registry=registry)
        self.first_token_s = Histogram(
            "outrider_edge_first_token_seconds",
            "From the slot to the first text",
            registry=registry,
            buckets=_LATENCIES_S,
        )
        self.answer_s = Histogram(
            "outrider_edge_answer_seconds",
            "From the slot to the end of a choice",
            registry=registry,
            buckets=_LATENCIES_S,
        )

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(f"outrider_edge_{name}", about, registry=self._registry).set_function(value)

    def told(self, tokens: Iterable[Told]) -> None:
        """Tokens went out."""
        for told in tokens:
            self.tokens.labels(told.token.origin.value).inc()

    def ended(self, end: End, took_s: float) -> None:
        """A choice is complete."""
        totals = end.totals
        self.drafted.inc(totals.drafted)
        self.accepted.inc(totals.accepted)
        self.cloud_steps.inc(totals.cloud_steps)
        self.sent.inc(totals.uplink_bytes)
        self.received.inc(totals.downlink_bytes)
        self.reconnects.inc(max(0, totals.connects - 1))
        self.answer_s.observe(took_s)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)
