"""A manifest is read as it was written, and nothing else passes for one."""

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_shared.errors import PackError
from outrider_shared.packs import FORMAT, FileEntry, Manifest, Precision
from unit.pack.tiny import hollow_manifest

DIGEST = "0" * 64
ENTRY = {"sha256": DIGEST, "size_bytes": 10}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("pack")
    for name in ("model.onnx", "tokenizer.json"):
        (folder / name).write_text(name)
    return hollow_manifest(folder)


def test_a_manifest_survives_the_disk(manifest: Manifest):
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert isinstance(Manifest.from_json(manifest.to_json()).precision, Precision)


def test_the_format_version_comes_first(manifest: Manifest):
    assert manifest.to_json().startswith(f'{{\n  "format": {FORMAT},')


@pytest.mark.parametrize("format_version", [0, 2, "1", None, True, 1.5])
def test_another_format_is_refused_before_anything_else_is_read(format_version: object):
    text = json.dumps({"format": format_version, "whatever": "the future brings"})
    with pytest.raises(PackError, match=r"format .*this version reads format 1 \(update outrider"):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    "text", ["", "{", "\x00", "[]", "null", '"pack"', "[" * 100_000], ids=lambda text: repr(text[:8])
)
def test_text_that_is_no_manifest_is_refused(text: str):
    with pytest.raises(PackError, match=r"manifest"):
        Manifest.from_json(text)


def test_a_manifest_of_megabytes_is_not_parsed():
    with pytest.raises(PackError, match=r"bytes.*expected at most"):
        Manifest.from_json(" " * (1 << 23))


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "name type": ({"name": 3}, "name is 3"),
    "name empty": ({"name": ""}, "name is ''"),
    "precision": (
        {"precision": "fp7"},
        "precision is 'fp7', expected fp32 or int8-dynamic or int8 or int4 or int4-all",
    ),
    "precision type": ({"precision": []}, "precision"),
    "architecture type": ({"architecture": 1}, "architecture is 1"),
    "architecture keys": ({"architecture": {"layers": 1}}, "architecture"),
    "eos type": ({"eos_ids": 2}, "eos_ids is 2, expected a list"),
    "eos range": ({"eos_ids": [320]}, "eos_ids is 320, expected an integer from 0 to 319"),
    "eos bool": ({"eos_ids": [True]}, "eos_ids is True"),
    "eos float": ({"eos_ids": [2.0]}, "eos_ids is 2.0"),
    "fingerprint": ({"tokenizer_fingerprint": "abc"}, "expected 64 lower-case hex digits"),
    "fingerprint type": ({"tokenizer_fingerprint": None}, "tokenizer_fingerprint is None"),
    "size": ({"tokenizer_size": 0}, "tokenizer_size is 0"),
    "files type": ({"files": []}, "files"),
    "files entry": ({"files": {"model.onnx": 1}}, r"files\['model.onnx'\] is 1"),
    "files absent": ({"files": {"model.onnx": ENTRY}}, "'tokenizer.json' among them"),
    "file digest": ({"files": {"model.onnx": {**ENTRY, "sha256": "F" * 64}}}, "lower-case hex"),
    "file size": ({"files": {"model.onnx": {**ENTRY, "size_bytes": -1}}}, "size_bytes is -1"),
    "source": ({"source": None}, "source is None"),
    "licence": ({"licence": 1}, "licence is 1"),
    "evaluation": ({"evaluation": []}, "evaluation"),
    "survival type": ({"survival": {}}, "survival"),
    "survival pair": ({"survival": [[1]]}, "survival"),
    "survival range": ({"survival": [[1, 1.5]]}, "survival"),
    "survival order": ({"survival": [[1, 0.5], [1, 0.6]]}, "ascending"),
    "survival text": ({"survival": [["1", 0.5]]}, "survival"),
    "unknown field": ({"colour": "red"}, "unknown fields .'colour'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_field_that_breaks_its_rule_is_named(manifest: Manifest, case: str):
    change, message = BROKEN[case]
    with pytest.raises(PackError, match=message):
        Manifest.from_json(json.dumps({**json.loads(manifest.to_json()), **change}))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Manifest)])
def test_no_field_may_be_missing(manifest: Manifest, field: str):
    fields = json.loads(manifest.to_json())
    del fields[field]
    with pytest.raises(PackError, match=field):
        Manifest.from_json(json.dumps(fields))


@pytest.mark.parametrize("field", ["layers", "kv_heads", "head_dim", "vocab_size", "context_length"])
@pytest.mark.parametrize("value", [0, -1, 1 << 40, "4", None, 2.5, True])
def test_shapes_are_positive_integers(manifest: Manifest, field: str, value: object):
    fields = json.loads(manifest.to_json())
    fields["architecture"][field] = value
    with pytest.raises(PackError, match=f"architecture.{field}"):
        Manifest.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    "name",
    ["../model.onnx", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", "", "a\x00b", "a\nb", "model.onnx ", "x" * 200],
)
def test_a_file_name_cannot_leave_the_pack(manifest: Manifest, name: str):
    files = {**manifest.files, name: FileEntry(DIGEST, 1)}
    with pytest.raises(PackError, match="expected a plain file name"):
        dataclasses.replace(manifest, files=files)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from([field.name for field in dataclasses.fields(Manifest)]), value=JSON)
def test_any_value_in_any_field_gives_a_manifest_or_a_pack_error(manifest: Manifest, field: str, value: object):
    with contextlib.suppress(PackError):
        Manifest.from_json(json.dumps({**json.loads(manifest.to_json()), field: value}))


def test_not_a_number_is_not_written(manifest: Manifest):
    with pytest.raises(ValueError, match="JSON"):
        dataclasses.replace(manifest, evaluation={"tv": float("nan")}).to_json()
