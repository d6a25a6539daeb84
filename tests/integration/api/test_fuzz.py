"""Requests made up from the daemon's own OpenAPI description: no 5xx but those meant, no traceback.

`OUTRIDER_FUZZ_EXAMPLES=2000` tries more of them.
"""

from __future__ import annotations

import json
import os
import urllib.request

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

SETTINGS = settings(
    max_examples=int(os.environ.get("OUTRIDER_FUZZ_EXAMPLES", "25")), deadline=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck), derandomize=True,
)  # fmt: skip


def test_requests_of_any_shape_end_in_a_meant_status(device):
    """Generated bodies, valid and not, for every route."""
    with urllib.request.urlopen(f"{device.address}/openapi.json") as answer:
        schema = schemathesis.openapi.from_dict(json.load(answer))
    operations = [operation.ok() for operation in schema.get_all_operations()]
    strategies = [operation.as_strategy() for operation in operations]
    strategies += [one.as_strategy(generation_mode=GenerationMode.NEGATIVE) for one in operations if one.body]

    @SETTINGS
    @given(case=st.one_of(strategies))
    def fuzz(case):
        if isinstance(case.body, dict):
            case.body.update(max_tokens=2, n=1)
            for name in ("max_completion_tokens", "suffix", "best_of"):  # the last two hide what else is asked for
                case.body.pop(name, None)
        response = case.call(base_url=device.address, timeout=60)
        assert response.status_code in {200, 400, 401, 403, 404, 405, 413, 422, 429, 503}, response.text
        assert "Traceback (most recent" not in response.text
        assert response.status_code != 400 or response.json()["error"]["message"]

    fuzz()
    assert "Traceback" not in device.output
