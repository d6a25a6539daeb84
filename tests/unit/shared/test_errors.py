"""The error tree: stable codes, the same types on both ends of the wire, and hints where they help."""

import re

import pytest

from outrider_shared import errors
from outrider_shared.errors import InputError, InternalError, OutriderError, error_from_code, ungrouped
from outrider_shared.wire import error_from_wire, error_to_wire
from outrider_wire.v1 import verifier_pb2 as pb


def every_kind(root: type[OutriderError] = OutriderError) -> list[type[OutriderError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in every_kind(child))]


KINDS = every_kind()


def test_codes_are_unique():
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)


def test_every_kind_has_a_code_of_its_own_and_not_its_parents():
    assert all("code" in vars(kind) for kind in KINDS)
    assert all(re.fullmatch(r"[a-z_]+", kind.code) for kind in KINDS)


def test_the_picture_of_the_tree_shows_every_kind_of_this_module():
    drawn = set(re.findall(r"\b\w+Error\b", errors.__doc__ or ""))
    assert drawn == {kind.__name__ for kind in KINDS if kind.__module__ == errors.__name__}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_an_error_keeps_its_kind_and_words_over_the_wire(kind: type[OutriderError]):
    sent = kind("token id 9 is outside", hint="use another pack")
    message = pb.Error.FromString(error_to_wire(sent, retry_after_ms=250).SerializeToString())
    got = error_from_wire(message)
    assert type(got) is kind
    assert (got.message, got.hint, str(got)) == (sent.message, sent.hint, str(sent))
    assert (message.code, message.retryable, message.retry_after_ms) == (kind.code, kind.retryable, 250)


def test_the_text_of_an_error_has_its_hint_in_brackets():
    assert str(OutriderError("too long", hint="send less")) == "too long (send less)"
    assert str(OutriderError("too long")) == "too long"


def test_a_code_of_a_newer_peer_becomes_an_internal_error():
    got = error_from_code("quota_of_2031", "no more", hint="wait")
    assert type(got) is InternalError
    assert str(got) == "no more (wait)"


def test_the_callers_own_faults_are_never_worth_a_retry():
    assert not any(kind.retryable for kind in every_kind(InputError))
    assert {kind.code for kind in KINDS if kind.retryable} == {
        "limit",
        "unavailable",
        "internal",
        "storage",
        "window_closed",
    }


def test_an_error_of_ours_from_a_task_group_is_raised_as_itself():
    """However deep it lies; with another's error beside it the group stays whole."""
    ours = InputError("no")
    with pytest.raises(InputError) as raised, ungrouped():
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [ours])])
    assert raised.value is ours
    with pytest.raises(ExceptionGroup) as group, ungrouped():
        raise ExceptionGroup("both", [ours, ValueError("no")])
    assert group.value.exceptions[0] is ours
    with pytest.raises(ExceptionGroup), ungrouped():
        raise ExceptionGroup("other", [ValueError("no")])
    with pytest.raises(ValueError, match="plain"), ungrouped():
        raise ValueError("plain")
