"""An agent for a program that answers: put together from its file."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import structlog

from outrider_edge.agent.agent import Agent
from outrider_edge.agent.config import AgentConfig
from outrider_edge.agent.disk import Disk
from outrider_edge.agent.update.aside import Aside
from outrider_edge.agent.update.slots import Slots
from outrider_shared.fleet.mqtt import MqttBroker
from outrider_shared.packs import bundled_pack, read_pack

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_edge.agent.host import Host
    from outrider_edge.agent.update.updater import Means

_log = structlog.get_logger()


def build_agent(file: Path, host: Host, base: Path | None = None, means: Means | None = None) -> tuple[Agent, Path]:
    """The agent, and the pack to start with: load that one, then `run` the agent.

    Args:
        file: `agent.toml`, or its folder.
        host: The program that answers.
        base: The pack that is used while none was installed; its tokenizer is the device's. The bundled one by default.
        means: Clocks of updates.

    Raises:
        ConfigError: if the file or what it names cannot be used.
        PackError: if `base` is damaged.
    """
    config, base, disk = AgentConfig.load(file), base or bundled_pack(), Disk()
    key = config.folder / "device.key"
    if key.exists() and key.stat().st_mode & stat.S_IROTH:
        _log.warning("fleet_key_is_readable_by_everybody", key=str(key), hint=f"chmod 600 {key}")
    disk.mkdir(config.state)
    slots = Slots(disk, config.state / "slots", base)
    tokenizer = read_pack(base).manifest.tokenizer_fingerprint
    agent = Agent(config, MqttBroker(config.mqtt), host, slots, Aside(file, base, host), tokenizer, disk, means)
    agent.boot()
    return agent, slots.folder(slots.current())
