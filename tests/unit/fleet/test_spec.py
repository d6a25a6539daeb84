"""What an operator may ask for, and a registry that holds what nobody may."""

from __future__ import annotations

import asyncio
import json

import pytest
from sqlalchemy import insert

from outrider_cloud.fleet.registry import rollouts, tables
from outrider_cloud.fleet.registry.database import sqlite_url
from outrider_cloud.fleet.rollout.spec import Gates, OnBreach, Spec, Stage
from outrider_shared.errors import ConfigError
from support.fleet import GOOD, Fleet


def spec(**changes) -> Spec:
    stages = (Stage(50, soak_s=0), Stage(100, soak_s=0))
    values = {"stages": stages, "per_minute": 1e6, "control_percent": 20.0, "gates": Gates(min_pairs=0)} | changes
    return Spec("r1", "draft/int8/b", GOOD, "int8", **values)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": (Stage(50), Stage(20), Stage(100))},
        {"stages": (Stage(50),)},
        {"control_percent": 90.0},
        {"attempts": 0},
        {"per_minute": 0},
    ],
)
def test_a_senseless_roll_out_is_refused(wrong):
    with pytest.raises(ConfigError):
        spec(**wrong)


def test_a_spec_survives_being_stored():
    wanted = spec(on_breach=OnBreach.PAUSE)
    assert Spec.read(wanted.stored()) == wanted
    with pytest.raises(ConfigError, match="soak"):
        Spec.read(wanted.stored() | {"stages": [{"percent": 100, "soak": 1}]})


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("gates", {"max_failed": "lots"}, "gates.max_failed is 'lots', expected float"),
        ("gates", {"max_failed": 1.5}, "max_failed is 1.5, expected 0 to 1"),
        ("gates", {"nix": 1}, "the gates has no field nix"),
        ("gates", [], "expected a map"),
        ("stages", "5,100", "expected a list"),
        ("stages", [{"percent": "all"}], "percent is 'all', expected float"),
        ("attempts", 2.5, "attempts is 2.5, expected int"),
        ("approvals", True, "approvals is True, expected int"),
        ("on_breach", "ignore", "expected one of"),
        ("colour", "red", "a roll-out has no field colour"),
        ("group", 7, "group is 7, expected str"),
    ],
)
def test_what_is_no_roll_out_is_refused_before_anything_is_kept(field, value, told):
    """Whoever writes it by hand is told which field is wrong: what is kept is read again in every round."""
    stored = json.loads(json.dumps(spec().stored()))
    assert Spec.read(stored) == spec()
    with pytest.raises(ConfigError, match=told):
        Spec.read({**stored, field: value})


def test_a_roll_out_that_cannot_be_carried_on_is_told_and_the_others_go_on(tmp_path):
    """What is in the registry may be of another version of the service."""
    fleet = Fleet(sqlite_url(tmp_path / "fleet.db"), devices=6)

    async def run():
        await fleet.births()
        with fleet.database.transaction() as connection:
            broken = {**spec().stored(), "name": "r0", "gates": {"max_failed": "lots"}}
            row = {"id": "r0", "spec": broken, "author": "ann", "state": "running"}
            connection.execute(insert(tables.rollouts).values(created=0.0, **row))
            rollouts.create(connection, spec(), "ann")
            rollouts.submit(connection, "r1", "ann")
        assert (await fleet.until("succeeded")).state == "succeeded"
        with fleet.database.reading() as connection:
            assert "max_failed" in rollouts.load(connection, "r0").waits_for

    asyncio.run(run())
    fleet.database.close()
