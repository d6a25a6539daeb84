"""What the registry takes: tokens and roles, settings, groups, webhooks, and where it may live."""

import pytest
from sqlalchemy import func, select

from outrider_cloud.fleet.registry import access, desired, devices, rollouts
from outrider_cloud.fleet.registry.database import Database
from outrider_cloud.fleet.registry.tables import deliveries, events, webhooks
from outrider_shared.errors import ConfigError
from support.fleet import spec


def test_webhooks_are_owed_what_they_asked_for(fleet):
    with fleet.database.transaction() as connection:
        row = {"name": "w", "url": "http://127.0.0.1:9/", "secret": "s", "kinds": ["rollout.denied"]}
        connection.execute(webhooks.insert().values(**row))
        rollouts.create(connection, spec(approvals=1), "ann")
        rollouts.submit(connection, "r1", "ann")
        rollouts.approve(connection, "r1", "bob", deny=True)
        (owed,) = connection.execute(select(deliveries)).all()
        assert owed.body["kind"] == "rollout.denied"
        assert connection.execute(select(func.count()).select_from(events)).scalar_one() == 3


def test_tokens_are_kept_as_digests_and_roles_are_ordered(fleet):
    with fleet.database.transaction() as connection:
        token = access.new_token(connection, "ann", access.Role.OPERATOR)
        assert access.who(connection, token) == ("ann", access.Role.OPERATOR)
        assert access.who(connection, token + "x") is None
        assert access.new_token(connection, "old", access.Role.VIEWER, days=-1)
        with pytest.raises(ConfigError, match="exists"):
            access.new_token(connection, "ann", access.Role.VIEWER)
        assert access.revoke(connection, "ann")
        assert access.who(connection, token) is None
    assert access.Role.APPROVER.allows(access.Role.OPERATOR)
    assert not access.Role.VIEWER.allows(access.Role.OPERATOR)


def test_settings_that_are_none_are_refused_and_numbers_only_grow(fleet):
    with fleet.database.transaction() as connection:
        assert desired.change(connection, "d", config={"telemetry_s": 5.0}) == 1
        assert desired.change(connection, "d", config={"log_lines": 50}) == 2
        (document,) = desired.pending(connection, epoch=1)
        assert (document.config.telemetry_s, document.config.log_lines) == (5.0, 50)
        for wrong in ({"colour": "red"}, {"telemetry_s": "soon"}, {"telemetry_s": 0.0}, {"window": {"start_s": -1}}):
            with pytest.raises(ConfigError, match=next(iter(wrong))):
                desired.change_many(connection, [], config=wrong)
        desired.published(connection, "d", 1)
        assert desired.pending(connection, epoch=1), "a newer one waits still"


def test_groups_by_name_and_by_label(fleet):
    with fleet.database.transaction() as connection:
        with pytest.raises(ConfigError, match="no group"):
            devices.selection("", "north", connection=connection)
        devices.set_group(connection, "north", [], {"site": "n"})
        assert connection.execute(devices.selection("", "north", connection=connection)).all() == []


@pytest.mark.parametrize("dsn", ["nonsense", "mysql://x/y"])
def test_a_dsn_of_another_kind_is_refused(dsn):
    with pytest.raises(ConfigError):
        Database(dsn)
