"""The attack table of docs/security.md: each line is refused with a named error, and the operator reads of it.

Artifacts are attacked between a real signed repository and a real updater; what the device then says goes through the
controller into a registry, and the audit log is read where `outrider fleet audit` reads it: from the API.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi.testclient import TestClient

from outrider_cloud.fleet import pki
from outrider_cloud.fleet.artifacts.publish import publish
from outrider_cloud.fleet.artifacts.repository import Repository
from outrider_cloud.fleet.broker_refusals import follow
from outrider_cloud.fleet.controller import Controller
from outrider_cloud.fleet.plane import Arrived
from outrider_cloud.fleet.registry import access
from outrider_cloud.fleet.registry.access import Role
from outrider_cloud.fleet.registry.database import Database, sqlite_url
from outrider_cloud.fleet.web.app import fleet_app
from outrider_cloud.fleet.web.state import Services
from outrider_shared.errors import RefusedError, ReplayError, UnavailableError
from outrider_shared.fleet import topics
from outrider_shared.fleet.desired import Applied, Assignment, Desired, accept, sign
from outrider_shared.fleet.messages import PackRef, Reported, UpdateState, UpdateStatus
from outrider_shared.fleet.mqtt import MqttBroker
from outrider_shared.fleet.signed import Signer, Trust
from outrider_shared.fleet.transport import Connect
from support.mosquitto import device_mqtt, new_fleet, running
from support.updates import Bench, tiny_pack

DEVICE = "d1"


class Service:
    """Controller, registry and API of a fleet; `audit` is what an operator is told."""

    def __init__(self, folder) -> None:
        self.database = Database(sqlite_url(folder / "fleet.db"))
        self.controller = Controller(self.database)
        self.api = TestClient(fleet_app(Services(self.controller, None, None)))  # nothing here sends commands
        with self.database.transaction() as connection:
            self.tokens = {role: access.new_token(connection, role.value, role) for role in Role}

    def asked(self, verb: str, path: str, token: str, **body):
        return self.api.request(verb, f"/api{path}", headers={"authorization": f"Bearer {token}"}, **body)

    def audit(self) -> list[tuple[str, str, str, str]]:
        """(actor, action, subject, code), newest first."""
        told = self.asked("GET", "/audit", self.tokens[Role.VIEWER]).json()["audit"]
        return [(row["actor"], row["action"], row["subject"], row["detail"].get("code", "")) for row in told]


@pytest.fixture
def service(tmp_path):
    made = Service(tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def update(bench: Bench, assignment: Assignment):
    """Assign and run to the end; the last record."""

    async def run():
        updater = bench.updater()
        updater.boot()
        if await updater.assign(assignment):
            await asyncio.wait_for(updater.run(), 60)
        return updater.record

    return asyncio.run(run())


def refused(service: Service, bench: Bench, assignment: Assignment, state: UpdateState, code: str) -> None:
    """The device refuses it by that name, keeps its draft, and its word of it is one line of the audit log."""
    before = bench.active()
    record = update(bench, assignment)
    assert (record.state, record.code, bench.active()) == (state, code, before)
    said = [
        Arrived(DEVICE, UpdateStatus(r.rollout, r.attempt, r.target, r.state, r.number, 1.0, code=r.code))
        for r in bench.told
        if r.rollout
    ]
    for _ in range(2):  # QoS 1: a batch may come twice and is noted once
        asyncio.run(service.controller.arrived(said))
    told = [line for line in service.audit() if line[3] == code]
    assert told == [(DEVICE, f"update.{state.value}", assignment.rollout, code)]


# Artifacts


def endless(data: bytes):
    yield data
    while True:
        yield b"x" * 65536


def tampered(data: bytes):
    return iter([data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]])


BYTES = {
    "tampered": (".tar", tampered, "artifact_altered"),
    "truncated": (".tar", lambda data: iter([data[:-1000]]), "artifact_truncated"),
    "endless": (".tar", endless, "artifact_endless"),
    "tampered_metadata": (
        "models.json",
        lambda data: iter([data.replace(b"draft", b"drafT", 1)]),
        "metadata_untrusted",
    ),
    "endless_metadata": ("timestamp.json", endless, "artifact_endless"),
    "garbage_metadata": ("timestamp.json", lambda data: iter([b"<html>"]), "metadata"),
}


@pytest.mark.parametrize("attack", BYTES)
def test_artifact(service, bench, attack):
    ending, change, code = BYTES[attack]
    one = bench.publish("one")
    bench.pool.altered[ending] = change
    refused(service, bench, one, UpdateState.FAILED, code)
    assert not list((bench.folder / "state" / "incoming").iterdir())


def test_artifact_rolled_back(service, bench):
    first = bench.publish("one")
    old = (bench.repository.metadata / "timestamp.json").read_bytes()
    update(bench, bench.publish("two"))
    bench.pool.altered["timestamp.json"] = lambda data: iter([old])
    refused(service, bench, first, UpdateState.FAILED, "metadata_rollback")


def test_artifact_expired(service, bench):
    one = bench.publish("one")
    past = Repository(
        bench.repository.folder, bench.folder / "keys", lambda: dt.datetime.now(dt.UTC) - dt.timedelta(days=30)
    )
    past.refresh()
    refused(service, bench, one, UpdateState.FAILED, "metadata_expired")


def test_artifact_by_a_revoked_key(service, bench):
    update(bench, bench.publish("one"))
    key = (bench.folder / "keys" / "timestamp.key").read_bytes()
    bench.repository.replace_key("timestamp")
    two = bench.publish("two")
    (bench.folder / "keys" / "timestamp.key").write_bytes(key)
    bench.repository.refresh()
    refused(service, bench, two, UpdateState.FAILED, "metadata_untrusted")


def test_artifact_under_signed(service, bench):
    """A new root that one of three key holders signed, where two are needed."""
    update(bench, bench.publish("one"))
    two = bench.publish("two")
    root = json.loads(bench.repository._file("root", 1).read_bytes())
    root["signed"]["version"], root["signatures"] = 2, root["signatures"][:1]
    bench.repository._file("root", 2).write_text(json.dumps(root))
    refused(service, bench, two, UpdateState.FAILED, "metadata_untrusted")


def test_artifact_out_of_delegation(service, bench):
    one = bench.publish("one")
    models = bench.repository.load("models")
    target = models.signed.targets[one.target]
    target.path = "firmware/evil.tar"
    models.signed.targets[target.path] = target
    bench.repository._renew("models", models)
    evil = Assignment("r", 1, "firmware/evil.tar", one.sha256)
    refused(service, bench, evil, UpdateState.REJECTED, "artifact_unlisted")


def test_artifact_for_another_tokenizer(service, bench):
    """It is not even downloaded."""
    other = json.dumps({"model": {"type": "BPE", "vocab": {"a": 1, "b": 0}, "merges": []}})
    path = publish(bench.repository, tiny_pack(bench.folder / "p", "other", tokenizer=other), version="1")
    refused(service, bench, bench.assignment(path), UpdateState.REJECTED, "mismatch")
    assert not any(name.endswith(".tar") for name, _ in bench.pool.asked)


# Desired state


def test_replayed_desired_state(service):
    """The device's refusal (the agent's part of it: `test_a_device_from_birth_to_goodbye`) is noted."""
    signer = Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    documents = [sign(signer, Desired(DEVICE, 1, version, 1.0)) for version in (1, 2)]
    trust = Trust((signer.public_key,))
    _, applied = accept(trust, DEVICE, Applied(), documents[1])
    with pytest.raises(ReplayError) as caught:
        accept(trust, DEVICE, applied, documents[0])
    said = Reported(1, 0, 1.0, 1, 2, PackRef("bundled"), refused=caught.value.code, message=caught.value.message)
    asyncio.run(service.controller.arrived([Arrived(DEVICE, said)]))
    assert service.audit() == [(DEVICE, "desired.refused", DEVICE, "replay")]


# The API


@pytest.mark.parametrize(
    ("role", "verb", "path"),
    [
        (Role.VIEWER, "PATCH", "/devices/d1/config"),
        (Role.VIEWER, "POST", "/devices/d1/commands"),
        (Role.VIEWER, "PUT", "/groups/g"),
        (Role.OPERATOR, "PUT", "/tokens/mallory"),
        (Role.OPERATOR, "DELETE", "/tokens/approver"),
    ],
)
def test_admin_call_without_the_role(service, role, verb, path):
    bodies = {"config": {"log_lines": 1}, "commands": {"name": "ping"}, "g": {}, "mallory": {"role": "approver"}}
    answer = service.asked(verb, path, service.tokens[role], json=bodies.get(path.rpartition("/")[2], {}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "refused")
    assert service.audit() == [(role.value, "access.refused", f"/api{path}", "refused")]


def test_admin_call_with_a_token_that_nobody_has(service):
    answer = service.asked("GET", "/devices", "orf_guess")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unknown_token")
    assert service.audit() == [("unknown", "access.refused", "/api/devices", "unknown_token")]


# The broker: real, with real certificates


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = new_fleet(tmp_path_factory.mktemp("fleet") / "f", "d1", "d2")
    with running(made):
        yield made


def broker_tells(service: Service, home, attack) -> list[tuple[str, str, str, str]]:
    """Run `attack`, and what the audit log has of it."""

    async def run():
        following = asyncio.create_task(follow(home.folder / "broker", service.controller, 0.05))
        try:
            await attack()
            for _ in range(400):
                if service.audit():
                    break
                await asyncio.sleep(0.05)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(run())
    return service.audit()


def connection(home, holder: str, claimed: str):
    return MqttBroker(device_mqtt(home, holder)).connect(Connect(claimed))


@pytest.mark.parametrize("topic", [topics.REPORTED, topics.TELEMETRY, topics.DESIRED], ids=lambda topic: topic.leaf)
def test_publishing_as_another_device(service, home, topic):
    """With `tele`: forged telemetry of another device."""
    forged = topic.of("main", "d2")

    async def attack():
        device = await connection(home, "d1", "d1")
        with pytest.raises(RefusedError) as caught:
            await device.publish(forged, b"forged")
        assert caught.value.code == "refused"
        await device.close()

    assert broker_tells(service, home, attack) == [("d1", "publish.refused", forged, "refused")]


def test_subscribing_as_another_device(service, home):
    """The protocol's answer is a yes that delivers nothing; what the operator reads is the refusal."""
    others = topics.DESIRED.of("main", "d2")

    async def attack():
        device = await connection(home, "d1", "d1")
        await device.subscribe(topics.DESIRED.of("main", "d1"))
        await device.subscribe(others)
        await device.close()

    assert broker_tells(service, home, attack) == [("d1", "subscribe.refused", others, "refused")]


def test_client_id_hijack(service, home):
    """The claimed id is not heard: the victim stays, and what is sent in its name is refused to the certificate's."""
    forged = topics.TELEMETRY.of("main", "d2")

    async def attack():
        victim = await connection(home, "d2", "d2")
        thief = await connection(home, "d1", "d2")
        with pytest.raises(RefusedError):
            await thief.publish(forged, b"forged")
        await victim.publish(forged, b"still here")
        await thief.close()
        await victim.close()

    assert broker_tells(service, home, attack) == [("d1", "publish.refused", forged, "refused")]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"certificate": None, "key": None}, "peer did not return a certificate"),
        ({"certificate": "c.pem", "key": "k.pem"}, "certificate verify failed"),
    ],
    ids=["none", "self-made"],
)
def test_connecting_without_a_certificate_of_the_fleet(service, home, tmp_path, files, why):
    made = pki.new_client(pki.new_authority("Outrider fleet main"), "d1")
    (tmp_path / "c.pem").write_bytes(made.certificate)
    (tmp_path / "k.pem").write_bytes(made.key)
    paths = {name: file and tmp_path / file for name, file in files.items()}

    async def attack():
        # Who hangs up before the broker has read the handshake leaves no line in its log, and did nothing: again, then.
        for _ in range(10):
            with pytest.raises(UnavailableError):
                await MqttBroker(device_mqtt(home, "d1", **paths)).connect(Connect("d1"))
            await asyncio.sleep(0.5)
            if service.audit():
                return

    assert set(broker_tells(service, home, attack)) == {("unknown", "connection.refused", why, "refused")}


def test_a_stolen_key_in_use_beside_its_owner(service, home):
    async def attack():
        first = await connection(home, "d1", "d1")
        second = await connection(home, "d1", "d1")
        await second.close()
        first.drop()

    assert broker_tells(service, home, attack) == [("d1", "session.taken_over", "d1", "conflict")]
