"""The service's side, over the broker's twin: batches, acknowledgement after commit, refusals, commands."""

from __future__ import annotations

import asyncio
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from outrider_cloud.fleet.plane import CONTROLLER, Plane, PlaneConfig
from outrider_shared.errors import DeadlineError, UnavailableError
from outrider_shared.fleet import topics
from outrider_shared.fleet.codec import encode
from outrider_shared.fleet.desired import Applied, Desired, accept
from outrider_shared.fleet.memory import MemoryBroker
from outrider_shared.fleet.messages import Command, CommandName, CommandResult, PackRef, Presence, Telemetry
from outrider_shared.fleet.session import FleetSession, Retry
from outrider_shared.fleet.signed import Signer, Trust
from outrider_shared.fleet.transport import Connect, Will
from outrider_shared.ids import DeviceId
from support.plane import Seen

SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
QUICK = Retry(0.001, 0.01)


def telemetry(seq: int, bd: int = 1) -> bytes:
    return encode(Telemetry(bd, seq, 1.0, 1.0, PackRef("bundled")))


def with_plane(test, sink=None, **settings):
    """Run `test(broker, plane, sink, device connection)`."""

    async def run():
        broker, seen = MemoryBroker.for_tenant("main"), sink or Seen()
        plane = Plane(broker, SIGNER, seen, PlaneConfig(batch_s=0.005), retry=QUICK, **settings)
        task = asyncio.create_task(plane.run())
        await plane.connected()
        try:
            await test(broker, plane, seen, await broker.connect(Connect("d1")))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_lost_messages_are_counted_and_repeats_are_marked():
    async def test(_broker, _plane, seen, device):
        topic = topics.TELEMETRY.of("main", "d1")
        for seq in (0, 1, 1, 4):
            await device.publish(topic, telemetry(seq))
        await seen.until(Telemetry, lambda m: m.seq == 4, 5)
        assert [(a.message.seq, a.new, a.lost) for a in seen.all] == [
            (0, True, 0),
            (1, True, 0),
            (1, False, 0),
            (4, True, 2),
        ]

    with_plane(test)


def test_what_was_counted_before_a_restart_is_not_counted_again():
    async def test(_broker, _plane, seen, device):
        for seq in (6, 7, 8):
            await device.publish(topics.TELEMETRY.of("main", "d1"), telemetry(seq))
        await seen.until(Telemetry, lambda m: m.seq == 8, 5)
        assert [a.message.seq for a in seen.all if a.new] == [8]

    with_plane(test, known={DeviceId("d1"): (1, 7)})


def test_malformed_messages_are_refused_and_told_and_the_rest_goes_on():
    async def test(_broker, _plane, seen, device):
        topic = topics.TELEMETRY.of("main", "d1")
        await device.publish(topic, b"garbage")
        await device.publish(topic, telemetry(0))
        await seen.until(Telemetry, seconds=5)
        assert seen.refusals == [(topic, "protocol")]

    with_plane(test)


def test_a_late_will_is_marked_as_not_counting():
    async def test(_broker, _plane, seen, device):
        topic = topics.PRESENCE.of("main", "d1")
        for message in (Presence(True, 2, 1.0), Presence(False, 1, 1.0, "lost"), Presence(False, 2, 1.0, "goodbye")):
            await device.publish(topic, encode(message), retain=True)
        await seen.until(Presence, lambda m: m.reason == "goodbye", 5)
        assert [a.new for a in seen.all] == [True, False, True]

    with_plane(test)


def test_who_ends_in_the_middle_of_a_birth_is_gone_by_its_will():
    """A polite end sends no Will, and nobody was there to say goodbye: it would be online for ever."""

    async def test(broker, _plane, seen, _device):
        topic = topics.PRESENCE.of("main", "d2")
        gone = Will(topic, encode(Presence(False, 1, 1.0, "lost")))
        born = asyncio.Event()

        async def birth(connection):
            await connection.publish(topic, encode(Presence(True, 1, 1.0)), retain=True)
            born.set()
            await asyncio.get_running_loop().create_future()

        session = FleetSession(broker, lambda: Connect("d2", gone), (), birth, birth)
        task = asyncio.create_task(session.run())
        await born.wait()
        task.cancel()
        assert (await seen.until(Presence, lambda m: not m.online, 5)).reason == "lost"

    with_plane(test)


def test_nothing_is_acknowledged_before_the_sink_has_it():
    """A service that dies while its registry commits gets the same messages again."""

    class Dying(Seen):
        async def arrived(self, batch):
            raise RuntimeError("the registry died")

    async def run():
        broker = MemoryBroker.for_tenant("main")
        plane = Plane(broker, SIGNER, Dying(), PlaneConfig(batch_s=0.005), retry=QUICK)
        task = asyncio.create_task(plane.run())
        await plane.connected()
        device = await broker.connect(Connect("d1"))
        for seq in range(5):
            await device.publish(topics.TELEMETRY.of("main", "d1"), telemetry(seq))
        with pytest.raises(ExceptionGroup):
            await task
        seen = Seen()
        task = asyncio.create_task(Plane(broker, SIGNER, seen, PlaneConfig(batch_s=0.005)).run())
        await seen.until(Telemetry, lambda m: m.seq == 4, 5)
        assert [a.message.seq for a in seen.all] == [0, 1, 2, 3, 4]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_desired_state_is_retained_and_accepted_by_its_device_alone():
    async def test(broker, plane, _seen, _device):
        await plane.publish_desired(Desired("d1", 1, 1, 1.0))
        payload = broker.retained[topics.DESIRED.of("main", "d1")].payload
        found = accept(Trust([SIGNER.public_key]), DeviceId("d1"), Applied(), payload)
        assert found is not None
        assert found[0].version == 1
        await plane.forget(DeviceId("d1"))
        assert topics.DESIRED.of("main", "d1") not in broker.retained

    with_plane(test)


def test_a_command_is_answered_or_its_time_passes():
    async def test(_broker, plane, _seen, device):
        await device.subscribe(topics.COMMAND.of("main", "d1"))
        command = Command("c1", "d1", CommandName.PING, time.time(), time.time() + 9)
        asked = asyncio.create_task(plane.command(command, 5))
        message = await device.receive()
        result = encode(CommandResult("c1", 1.0, output={"a": 1}))
        await device.publish(topics.COMMAND_RESULT.of("main", "d1"), result, correlation=message.correlation)
        assert (await asked).output == {"a": 1}
        with pytest.raises(DeadlineError):
            await plane.command(command, 0.05)

    with_plane(test)


def test_without_its_broker_the_service_says_so_and_comes_back():
    async def test(broker, plane, seen, _device):
        broker.stop()
        await asyncio.sleep(0.05)
        with pytest.raises(UnavailableError):
            await plane.publish_desired(Desired("d1", 1, 1, 1.0))
        broker.start()
        await plane.connected()
        device = await broker.connect(Connect("d1"))
        await device.publish(topics.TELEMETRY.of("main", "d1"), telemetry(0))
        await seen.until(Telemetry, seconds=5)
        assert broker.retained[topics.service_state("main")].topic.endswith("svc/state")
        assert CONTROLLER.startswith("svc-")

    with_plane(test)
