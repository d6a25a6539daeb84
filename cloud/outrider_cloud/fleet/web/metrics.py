"""Prometheus metrics of the fleet service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from outrider_cloud.fleet.registry import tables
from outrider_cloud.fleet.web.guard import Found

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outrider_cloud.fleet.web.state import Services

router = APIRouter()


class _Fleet(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterable[Metric]:
        """All metrics, read from the registry now."""
        controller = self._services.controller
        counters, overview = controller.counters, self._services.glance.overview()
        with controller.database.reading() as connection:
            states = connection.execute(
                select(tables.rollouts.c.state, func.count()).group_by(tables.rollouts.c.state)
            ).all()
        yield GaugeMetricFamily("outrider_fleet_devices", "Devices in the registry", overview["devices"])
        yield GaugeMetricFamily("outrider_fleet_devices_online", "Devices that are here", overview["online"])
        yield CounterMetricFamily("outrider_fleet_tokens", "Tokens committed on devices", overview["tokens"])
        yield CounterMetricFamily("outrider_fleet_cloud_steps", "Cloud steps they took", overview["cloud_steps"])
        yield CounterMetricFamily("outrider_fleet_telemetry_lost", "Windows lost on the way", overview["lost"])
        yield CounterMetricFamily("outrider_fleet_messages", "Messages taken", counters.messages)
        yield CounterMetricFamily("outrider_fleet_messages_repeated", "Of them repeats", counters.repeats)
        yield CounterMetricFamily("outrider_fleet_messages_refused", "Messages refused", counters.refused)
        yield CounterMetricFamily("outrider_fleet_desired_published", "Desired states published", counters.published)
        rollouts = GaugeMetricFamily("outrider_fleet_rollouts", "Roll-outs by state", labels=["state"])
        for state, count in states:
            rollouts.add_metric([state], count)
        yield rollouts


@router.get("/metrics")
def metrics(found: Found) -> Response:
    """For Prometheus; no names of devices or people."""
    registry = CollectorRegistry()
    registry.register(_Fleet(found))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
