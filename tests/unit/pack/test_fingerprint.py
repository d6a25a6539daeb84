"""One tokenizer has one fingerprint, whoever saved its file; two tokenizers have two."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from outrider_shared.errors import PackError
from outrider_shared.packs import tokenizer_fingerprint, tokenizer_size

BPE: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": 4, "content": "<s>", "special": True}],
    "normalizer": None,
    "model": {"type": "BPE", "unk_token": "a", "vocab": {"a": 0, "b": 1, "ab": 2, "abb": 3}, "merges": ["a b", "ab b"]},
}


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    content = json.loads(json.dumps(BPE))
    change(content)
    return json.dumps(content).encode()


PLAIN = changed(lambda _content: None)

SAME = {
    "white space": json.dumps(BPE, indent=4).encode(),
    "key order": json.dumps(dict(reversed(BPE.items()))).encode(),
    "padding": changed(lambda c: c.update(padding={"strategy": "BatchLongest", "pad_id": 0})),
    "truncation": changed(lambda c: c.update(truncation={"max_length": 512})),
    "no padding key": changed(lambda c: c.pop("padding")),
    "merges as pairs": changed(lambda c: c["model"].update(merges=[["a", "b"], ["ab", "b"]])),
    "defaults spelled out": changed(
        lambda c: c["model"].update(dropout=None, ignore_merges=False, end_of_word_suffix="")
    ),
}

OTHER = {
    "vocabulary": changed(lambda c: c["model"]["vocab"].update(abb=5)),
    "merge order": changed(lambda c: c["model"]["merges"].reverse()),
    "added token": changed(lambda c: c["added_tokens"].clear()),
    "normalizer": changed(lambda c: c.update(normalizer={"type": "NFC"})),
    "option": changed(lambda c: c["model"].update(byte_fallback=True)),
}


@pytest.mark.parametrize("how", SAME)
def test_the_fingerprint_looks_past_what_changes_no_id(how: str):
    assert tokenizer_fingerprint(SAME[how]) == tokenizer_fingerprint(PLAIN)


@pytest.mark.parametrize("how", OTHER)
def test_the_fingerprint_sees_what_can_change_an_id(how: str):
    assert tokenizer_fingerprint(OTHER[how]) != tokenizer_fingerprint(PLAIN)


def test_the_fingerprint_is_pinned():
    """Both sides may run different versions: a change of the canonical form is a change of the format."""
    assert tokenizer_fingerprint(PLAIN) == "9697c1e21f73ec47e4bc7ec949387b99b5d730cb7dea2038ceb3af4b72051572"


def test_the_size_counts_added_tokens_and_lists_of_pieces():
    unigram = {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}}
    assert tokenizer_size(PLAIN) == 5
    assert tokenizer_size(json.dumps(unigram).encode()) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"model": 3}', b"\xff\xfe", b"[" * 100_000],
    ids=lambda content: repr(content[:12]),
)
def test_bytes_that_are_no_tokenizer_are_refused(content: bytes):
    with pytest.raises(PackError, match=r"tokenizer\.json"):
        tokenizer_fingerprint(content)


@pytest.mark.parametrize("vocab", ["{}", "null", "7", '{"a": "b"}'])
def test_a_vocabulary_without_ids_is_refused(vocab: str):
    with pytest.raises(PackError, match="no readable vocabulary"):
        tokenizer_size(b'{"model": {"vocab": %b}}' % vocab.encode())
