"""The gRPC transport, before it reaches anybody."""

from __future__ import annotations

import pytest

from outrider_edge.link.grpc_link import GrpcConnector
from outrider_shared.errors import ConfigError


@pytest.mark.parametrize("target", ["cloud.example", ":50061", "cloud.example:", "cloud.example:fast", "h:70000", ""])
def test_what_is_no_address_is_refused_before_anything_is_waited_for(target):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        GrpcConnector(target)


@pytest.mark.parametrize("target", ["cloud.example:50061", "[::1]:50061", "10.0.0.1:1"])
def test_an_address_is_kept_as_it_is(target):
    assert GrpcConnector(target).where == target
