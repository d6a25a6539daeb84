"""The dashboard and the alerts ask for metrics that the services have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest

from outrider_cloud.engine.blocks import BlockPool
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.stats import EngineStats
from outrider_cloud.service.directory import Directory
from outrider_cloud.service.metrics import Metrics as CloudMetrics
from outrider_edge.api.metrics import Metrics as EdgeMetrics

DEPLOY = Path(__file__).parents[3] / "deploy"
_FLEET = Path(__file__).parents[3] / "cloud/outrider_cloud/fleet/web/metrics.py"


def _cloud() -> str:
    engine: Any = SimpleNamespace(stats=EngineStats(), pool=BlockPool(4, 16), config=EngineConfig(), sessions={})
    metrics = CloudMetrics(engine, Directory(1))
    metrics.refused("limit")
    return generate_latest(metrics.registry).decode()


def _known() -> set[str]:
    """Names of families, as they stand in `# TYPE` lines; the fleet's from its module, where all are literals."""
    pages = _cloud() + EdgeMetrics().text().decode()
    families = re.findall(r"^# TYPE (outrider_\w+) (\w+)$", pages, re.MULTILINE)
    names = {name for name, _ in families}
    for name, kind in families:
        if kind == "histogram":
            names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    for kind, name in re.findall(r'(Gauge|Counter)MetricFamily\("(outrider_fleet_\w+)"', _FLEET.read_text("utf-8")):
        names.add(name if kind == "Gauge" else f"{name}_total")
    return names


def _expressions(name: str) -> list[str]:
    if name.endswith(".json"):
        panels = json.loads((DEPLOY / name).read_text("utf-8"))["panels"]
        return [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [(DEPLOY / name).read_text("utf-8")]


@pytest.mark.parametrize("name", ["grafana/outrider.json", "prometheus/alerts.yaml"])
def test_every_metric_that_is_asked_for_exists(name):
    expressions = _expressions(name)
    asked = {found for text in expressions for found in re.findall(r"\boutrider_\w+", text)}
    assert asked, "nothing is asked for"
    assert asked <= _known()


def test_panels_do_not_overlap():
    panels = json.loads((DEPLOY / "grafana/outrider.json").read_text("utf-8"))["panels"]
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        own = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
        assert not own & cells, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        cells |= own
