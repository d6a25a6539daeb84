"""The attack table of docs/security.md: each line is refused with a named error, and the operator reads of it.

Artifacts are attacked between a real signed repository and a real updater; what the device then says goes through the
controller into a registry, and the audit log is read where `outrider fleet audit` reads it: from the API.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json

import pytest
from fastapi.testclient import TestClient

from outrider_cloud.fleet.artifacts.publish import publish
from outrider_cloud.fleet.artifacts.repository import Repository
from outrider_cloud.fleet.controller import Controller
from outrider_cloud.fleet.plane import Arrived
from outrider_cloud.fleet.registry import access
from outrider_cloud.fleet.registry.access import Role
from outrider_cloud.fleet.registry.database import Database, sqlite_url
from outrider_cloud.fleet.web.app import fleet_app
from outrider_cloud.fleet.web.state import Services
from outrider_shared.fleet.desired import Assignment
from outrider_shared.fleet.messages import UpdateState, UpdateStatus
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
