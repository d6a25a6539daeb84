"""The twin in memory and the real broker behave alike; each test runs against both."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest

from outrider_shared.errors import OutriderError, RefusedError, UnavailableError
from outrider_shared.fleet import topics
from outrider_shared.fleet.memory import MemoryBroker
from outrider_shared.fleet.mqtt import MqttBroker
from outrider_shared.fleet.transport import Connect, Will
from support.mosquitto import RunningBroker, device_mqtt, new_fleet, running

SERVICE = "svc-controller"
T1, T2 = (topics.TELEMETRY.of("main", device) for device in ("d1", "d2"))
DESIRED1, DESIRED2 = (topics.DESIRED.of("main", device) for device in ("d1", "d2"))
PRESENCE1 = topics.PRESENCE.of("main", "d1")


class Twin:
    def __init__(self) -> None:
        self.broker = MemoryBroker.for_tenant("main")

    def of(self, client: str) -> MemoryBroker:
        return self.broker

    def kill(self) -> None:
        self.broker.stop()

    def start(self) -> None:
        self.broker.start()


class Real:
    def __init__(self, running_broker: RunningBroker) -> None:
        self._running = running_broker

    def of(self, client: str) -> MqttBroker:
        home = self._running.home
        return MqttBroker(home.mqtt() if client == SERVICE else device_mqtt(home, client))

    def kill(self) -> None:
        self._running.kill()

    def start(self) -> None:
        self._running.start()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    home = new_fleet(tmp_path_factory.mktemp("fleet") / "f", "d1", "d2")
    with running(home) as broker:
        yield Real(broker)


@pytest.fixture(params=["twin", "mosquitto"])
def brokers(request):
    return Twin() if request.param == "twin" else request.getfixturevalue("real")


async def soon(connection, seconds: float = 5.0):
    return await asyncio.wait_for(connection.receive(), seconds)


async def nothing(connection) -> bool:
    """Whether nothing comes for a while."""
    try:
        await asyncio.wait_for(connection.receive(), 0.3)
    except TimeoutError:
        return True
    return False


@contextlib.asynccontextmanager
async def connected(brokers, client: str, **options):
    connection = await brokers.of(client).connect(Connect(client, **options))
    try:
        yield connection
    finally:
        await connection.close()


def test_a_retained_message_waits_for_who_comes_later(brokers):
    async def run():
        async with connected(brokers, SERVICE) as service:
            await service.publish(DESIRED1, b"one", retain=True)
            await service.publish(DESIRED1, b"two", retain=True)
            async with connected(brokers, "d1") as device:
                await device.subscribe(DESIRED1)
                message = await soon(device)
                assert (message.payload, message.retained) == (b"two", True)
                device.ack(message)
                await service.publish(DESIRED1, b"", retain=True)
                assert (await soon(device)).payload == b""
            async with connected(brokers, "d1") as device:
                await device.subscribe(DESIRED1)
                assert await nothing(device)

    asyncio.run(run())


def test_a_crash_sends_the_will_and_a_goodbye_does_not(brokers):
    async def run():
        async with connected(brokers, SERVICE) as service:
            await service.subscribe(PRESENCE1)
            will = Will(PRESENCE1, b"lost", retain=False)
            async with connected(brokers, "d1", will=will):
                pass
            assert await nothing(service)
            device = await brokers.of("d1").connect(Connect("d1", will))
            device.drop()
            assert (await soon(service)).payload == b"lost"

    asyncio.run(run())


def test_a_device_that_is_back_within_the_wills_delay_was_never_gone(brokers):
    async def run():
        async with connected(brokers, SERVICE) as service:
            await service.subscribe(PRESENCE1)
            # With MQTT 5 a Will is due when the session ends, if that is before its delay: so the session must live on.
            options = {"will": Will(PRESENCE1, b"lost", retain=False, delay_s=1), "session_s": 60}
            device = await brokers.of("d1").connect(Connect("d1", **options))
            device.drop()
            async with connected(brokers, "d1", **options):
                with pytest.raises(TimeoutError):
                    await soon(service, 1.5)

    asyncio.run(run())


@pytest.mark.parametrize("topic", [T2, DESIRED1, "outrider/v1/main/svc/state", "elsewhere"])
def test_publishing_where_one_may_not_is_an_error(brokers, topic):
    async def run():
        async with connected(brokers, "d1") as device:
            await device.publish(T1, b"mine")
            with pytest.raises(RefusedError, match="may not publish"):
                await device.publish(topic, b"forged")
            await device.publish(T1, b"still connected")

    asyncio.run(run())


@pytest.mark.parametrize("pattern", [DESIRED2, "#", "outrider/v1/main/d/+/desired", T1])
def test_subscribing_to_what_is_anothers_delivers_nothing(brokers, pattern):
    async def run():
        async with connected(brokers, SERVICE) as service, connected(brokers, "d1") as device:
            await service.publish(DESIRED2, b"kept", retain=True)
            await device.subscribe(pattern)
            await service.publish(DESIRED2, b"secret", retain=True)
            await service.publish(T1, b"x")
            assert await nothing(device)

    asyncio.run(run())


def test_what_was_not_acknowledged_comes_again_in_the_next_connection(brokers):
    async def run():
        service = await brokers.of(SERVICE).connect(Connect(SERVICE, session_s=60))
        await service.subscribe(T1)
        async with connected(brokers, "d1") as device:
            for i in range(3):
                await device.publish(T1, bytes([i]))
            first = await soon(service)
            service.ack(first)
            assert [(await soon(service)).payload for _ in range(2)] == [b"\1", b"\2"]
            if not isinstance(brokers, Twin):
                await asyncio.sleep(0.1)  # let the acknowledgement out of the socket's buffer before it is cut
            service.drop()
            await device.publish(T1, b"\3")
        async with connected(brokers, SERVICE, session_s=60) as service:
            assert [(await soon(service)).payload for _ in range(3)] == [b"\1", b"\2", b"\3"]
        async with connected(brokers, SERVICE):
            pass

    asyncio.run(run())


def test_a_second_connection_of_the_same_client_ends_the_first(brokers):
    async def run():
        first = await brokers.of("d1").connect(Connect("d1"))
        async with connected(brokers, "d1") as second:
            with pytest.raises(UnavailableError):
                await soon(first)
            await second.publish(T1, b"x")

    asyncio.run(run())


def test_a_killed_broker_breaks_connections_and_is_found_again(brokers):
    async def run():
        device = await brokers.of("d1").connect(Connect("d1"))
        brokers.kill()
        with pytest.raises(UnavailableError):
            await soon(device)
        with pytest.raises(UnavailableError):
            await device.publish(T1, b"x")
        with pytest.raises(UnavailableError):
            await brokers.of("d1").connect(Connect("d1"))
        brokers.start()
        async with connected(brokers, "d1") as device:
            await device.publish(T1, b"x")

    asyncio.run(run())


def test_response_topic_and_correlation_travel(brokers):
    async def run():
        async with connected(brokers, SERVICE) as service, connected(brokers, "d1") as device:
            request = topics.COMMAND.of("main", "d1")
            await device.subscribe(request)
            await service.publish(request, b"ping", expiry_s=5, response_topic="a/b", correlation=b"\0\1")
            message = await soon(device)
            assert (message.response_topic, message.correlation) == ("a/b", b"\0\1")

    asyncio.run(run())


def test_who_stops_waiting_for_a_connection_leaves_nothing_behind(real):
    """At any moment of it: a device that is ended while it connects complains of nothing."""
    complaints: list[str] = []

    async def run():
        asyncio.get_running_loop().set_exception_handler(lambda _loop, told: complaints.append(str(told)))
        for step in range(12):
            connecting = asyncio.create_task(real.of("d1").connect(Connect("d1")))
            await asyncio.sleep(0.004 * step)
            connecting.cancel()
            for found in await asyncio.gather(connecting, return_exceptions=True):
                if not isinstance(found, BaseException):
                    await found.close()
        await asyncio.sleep(0.1)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []

    asyncio.run(run())
    assert complaints == []


class TestIdentity:
    """Who one is comes from the certificate and from nowhere else (real broker only: it is about TLS)."""

    def test_a_claimed_client_id_is_replaced_by_the_certificates(self, real):
        """The hijack that works without `use_username_as_clientid`: taking another's client id throws it out."""

        async def run():
            async with connected(real, "d2") as victim:
                attacker = await real.of("d1").connect(Connect("d2"))
                await victim.publish(T2, b"still here")
                await attacker.publish(T1, b"as myself only")
                with pytest.raises(RefusedError):
                    await attacker.publish(T2, b"as d2")
                await attacker.close()

        asyncio.run(run())

    @pytest.mark.parametrize("kind", ["none", "self-made", "server"])
    def test_without_a_certificate_of_the_fleet_there_is_no_connection(self, real, tmp_path, kind):
        from outrider_cloud.fleet import pki

        home = real._running.home
        files: dict = {"certificate": None, "key": None}
        if kind != "none":
            pair = pki.new_client(pki.new_authority("Outrider fleet main"), "d1")
            if kind == "server":
                pair = pki.new_server(home.authority, "d1", ["localhost"])
            files = {"certificate": tmp_path / "c.pem", "key": tmp_path / "k.pem"}
            files["certificate"].write_bytes(pair.certificate)
            files["key"].write_bytes(pair.key)

        async def run():
            with pytest.raises(OutriderError) as caught:
                await MqttBroker(device_mqtt(home, "d1", **files)).connect(Connect("d1"))
            assert caught.value.code in {"unavailable", "refused"}

        asyncio.run(run())

    def test_a_broker_that_another_authority_signed_is_not_believed(self, real, tmp_path):
        from outrider_cloud.fleet import pki

        (tmp_path / "ca.pem").write_bytes(pki.new_authority("x").certificate)

        async def run():
            config = device_mqtt(real._running.home, "d1", ca=tmp_path / "ca.pem")
            with pytest.raises(UnavailableError, match=r"(?i)certificate"):
                await MqttBroker(config).connect(Connect("d1"))

        asyncio.run(run())
        gc.collect()  # a socket that was left open would be told as an error here
