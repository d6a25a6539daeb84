"""Who asks the service's API: what strangers can make it write."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from outrider_cloud.fleet.controller import Controller
from outrider_cloud.fleet.registry import access, tables
from outrider_cloud.fleet.registry.access import Role
from outrider_cloud.fleet.registry.database import Database, sqlite_url
from outrider_cloud.fleet.web.app import fleet_app
from outrider_cloud.fleet.web.state import PerMinute, Services


@pytest.fixture
def controller(tmp_path):
    database = Database(sqlite_url(tmp_path / "fleet.db"))
    yield Controller(database)
    database.close()


def asked(client: TestClient, token: str, path: str = "/api/overview", method: str = "GET") -> int:
    headers = {"authorization": f"Bearer {token}"}
    return client.request(method, path, headers=headers, json={} if method == "PUT" else None).status_code


def noted(controller: Controller, actor: str) -> int:
    with controller.database.reading() as connection:
        mine = tables.audit.c.actor == actor
        return connection.execute(select(func.count(tables.audit.c.id)).where(mine)).scalar_one()


def test_strangers_fill_the_audit_log_slowly_and_people_are_noted_each_time(controller):
    """What anybody may send is bounded by the minute; what somebody with a token may not do is always written down."""
    now = [0.0]
    services = Services(controller, None, None, strangers=PerMinute(3, lambda: now[0]))
    with controller.database.transaction() as connection:
        cleo = access.new_token(connection, "cleo", Role.VIEWER)
    client = TestClient(fleet_app(services))
    assert {asked(client, "orf_guess") for _ in range(10)} == {401}
    assert noted(controller, "unknown") == 3
    now[0] = 60.0
    assert asked(client, "orf_guess") == 401
    assert noted(controller, "unknown") == 4
    assert [asked(client, cleo, "/api/groups/g", "PUT") for _ in range(5)] == [403] * 5
    assert noted(controller, "cleo") == 5
    assert asked(client, cleo) == 200


def test_every_answer_carries_the_policy_and_api_answers_are_not_kept(controller):
    client = TestClient(fleet_app(Services(controller, None, None)))
    for path, status, kept in (
        ("/", 200, "no-cache"),
        ("/app.js", 200, "no-cache"),
        ("/api/overview", 401, "no-store"),
    ):
        answer = client.get(path)
        assert answer.status_code == status
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == kept
