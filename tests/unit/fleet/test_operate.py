"""The operator's commands against the real API: what goes wrong is a sentence and an exit status."""

from __future__ import annotations

import json
import threading
import time

import pytest
import uvicorn
from click.testing import CliRunner

from outrider_cloud.fleet.cli import fleet as command
from outrider_cloud.fleet.controller import Controller
from outrider_cloud.fleet.home import FleetHome, Settings
from outrider_cloud.fleet.plane import Arrived
from outrider_cloud.fleet.registry import access, devices
from outrider_cloud.fleet.registry.access import Role
from outrider_cloud.fleet.registry.database import Database, sqlite_url
from outrider_cloud.fleet.web.app import fleet_app
from outrider_cloud.fleet.web.state import Services
from outrider_shared.errors import OutriderError
from outrider_shared.fleet.messages import Presence
from outrider_shared.processes import free_port


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Its address, and tokens by name; one device was here once."""
    database, port = Database(sqlite_url(tmp_path_factory.mktemp("registry") / "fleet.db")), free_port()
    with database.transaction() as connection:
        devices.take(connection, [Arrived("kitchen-1", Presence(False, 1, 1.0))])
        tokens = {name: access.new_token(connection, name, role) for name, role in
                  (("ann", Role.OPERATOR), ("ben", Role.APPROVER), ("cleo", Role.VIEWER))}  # fmt: skip
        tokens["dora"] = access.new_token(connection, "dora", Role.APPROVER, days=-1.0)
    app = fleet_app(Services(Controller(database), None, None))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}", tokens
    server.should_exit = True
    thread.join(10)
    database.close()


@pytest.fixture
def said(service, monkeypatch):
    """Runs a command as somebody: exit status, and what it said."""
    url, tokens = service
    monkeypatch.setenv("OUTRIDER_FLEET_URL", url)

    def run(person: str, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(command, [*arguments, "--token", tokens[person]])
        if isinstance(done.exception, OutriderError):
            raise done.exception
        return done.exit_code, done.output

    return run


@pytest.mark.parametrize(
    ("person", "arguments", "status", "words"),
    [
        (
            "cleo",
            ("device", "show", "kitchen-9"),
            2,
            "no device 'kitchen-9' was ever here (outrider fleet device list)",
        ),
        ("ann", ("device", "set", "telemetry_s=1", "--device", "kitchen-9"), 2, "no device 'kitchen-9' was ever here"),
        ("ann", ("device", "set", "telemetry_s=fast", "--device", "kitchen-1"), 2, "telemetry_s is 'fast'"),
        ("ann", ("device", "set", "colour=red"), 2, "no setting of a device: colour"),
        (
            "ann",
            ("device", "set", "telemetry_s=1", "--device", "Kitchen/1"),
            2,
            "has nothing at PATCH /devices/Kitchen%2F1",
        ),
        ("ann", ("command", "kitchen-9", "ping"), 2, "no device 'kitchen-9' was ever here"),
        ("ann", ("command", "kitchen-1", "dance"), 2, "Input should be 'ping'"),
        ("ann", ("group", "set", "", "kitchen-1"), 2, "a name is empty"),
        ("ann", ("device", "set", "telemetry_s=1", "--group", "attic"), 2, "no group 'attic'"),
        ("ann", ("rollout", "pause", "spring"), 2, "no roll-out 'spring' (outrider fleet rollout list)"),
        ("ann", ("rollout", "create", "spring", "draft/int8/x.tar", "--gate", "max_failed=lots"), 2, "sha256"),
        ("cleo", ("rollout", "pause", "spring"), 1, "cleo is viewer; this needs operator (ask an approver)"),
        ("ann", ("token", "eve"), 1, "ann is operator; this needs approver"),
        ("ben", ("token", "eve", "--revoke"), 2, "no token 'eve'"),
        ("dora", ("device", "list"), 1, "nobody has this token, or it is past its date (ask an approver for one)"),
        ("ann", ("webhook", "pager", "--remove"), 2, "no webhook 'pager'"),
        ("ann", ("webhook", "pager"), 2, "URL is missing (or give --remove)"),
        ("ann", ("webhook", "pager", "ftp://x"), 2, "String should match pattern"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_sentence(said, person, arguments, status, words):
    found, output = said(person, *arguments)
    assert words in output
    assert output.startswith("outrider: ")
    assert output.count("\n") == 1
    assert found == status


def test_a_webhook_is_made_with_a_secret_and_taken_away(said):
    status, output = said("ann", "webhook", "pager", "http://127.0.0.1:1/x", "--kind", "rollout.paused", "--json")
    assert (status, len(json.loads(output)["secret"])) == (0, 43)
    assert said("ann", "webhook", "pager", "--remove")[0] == 0


def test_the_audit_log_says_when_in_words_that_people_read(said):
    said("ann", "group", "set", "house", "kitchen-1")
    status, output = said("cleo", "audit", "--subject", "house")
    assert status == 0
    assert time.strftime("%Y-%m-%d") in output
    assert "group.set" in output


def test_a_service_that_is_away_is_named(said, monkeypatch):
    monkeypatch.setenv("OUTRIDER_FLEET_URL", f"http://127.0.0.1:{free_port()}")
    status, output = said("ann", "device", "list")
    assert status == 1
    assert "no fleet service at http://127.0.0.1" in output
    assert ": Connection refused (start it: outrider fleet serve; or give its --url)" in output


@pytest.mark.parametrize("damage", ["unlink", "garble"])
def test_a_signing_key_that_cannot_be_read_is_named(tmp_path, damage):
    home = FleetHome.init(tmp_path / "f", Settings(mqtt_port=free_port(), https_port=free_port()))
    key = home.folder / "keys" / "desired.key"
    key.unlink() if damage == "unlink" else key.write_text("garbage")
    for arguments in (["serve"], ["enrol", "d1"]):
        done = CliRunner().invoke(command, [*arguments, "--dir", str(home.folder)])
        assert done.exit_code == 2
        assert f"the key that signs desired states cannot be read: {key}" in done.output


def test_keys_that_everybody_may_read_are_found(tmp_path):
    home = FleetHome.init(tmp_path / "f", Settings(mqtt_port=free_port(), https_port=free_port()))
    assert home.bare_keys == []
    key = home.folder / "keys" / "models.key"
    key.chmod(0o644)
    assert home.bare_keys == [key]
