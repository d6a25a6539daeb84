"""One cloud and one daemon for all tests of the endpoint."""

from __future__ import annotations

import pytest

from support.daemon import cloud, daemon


@pytest.fixture(scope="session")
def verifier(tmp_path_factory):
    with cloud(tmp_path_factory.mktemp("cloud")) as running:
        yield running


@pytest.fixture(scope="session")
def device(tmp_path_factory, verifier):
    with daemon(tmp_path_factory.mktemp("edge"), verifier.address) as running:
        yield running
        assert "Traceback" not in running.output
