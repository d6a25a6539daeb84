"""The pack that ships with the package is whole, small, and made from the draft that ships beside it."""

from importlib.resources import files
from pathlib import Path

import pytest

from outrider_cloud.pack.check import check_graph
from outrider_shared.packs import Pack, bundled_pack, read_pack, tokenizer_fingerprint

CLOUD = Path(str(files("outrider_cloud"))) / "bundled"


@pytest.fixture(scope="module")
def bundled() -> Pack:
    return read_pack(bundled_pack())


def test_it_is_small_enough_to_ship(bundled: Pack):
    assert sum(entry.size_bytes for entry in bundled.manifest.files.values()) < 4_000_000


def test_it_names_its_licence_and_whom_to_credit(bundled: Pack):
    assert bundled.manifest.licence == "Apache-2.0"
    assert "NOTICE" in bundled.manifest.attribution


def test_it_computes_what_the_draft_beside_it_computes(bundled: Pack):
    """A draft trained anew must be packed anew."""
    manifest = bundled.manifest
    result = check_graph(bundled.model_path, CLOUD / "draft", manifest.architecture, manifest.precision)
    assert result.tv == pytest.approx(manifest.evaluation["export"]["tv"], abs=0.01)
    assert bundled.tokenizer_path.read_bytes() == (CLOUD / "draft" / "tokenizer.json").read_bytes()


def test_it_speaks_the_bundled_targets_tokens(bundled: Pack):
    assert bundled.manifest.tokenizer_fingerprint == tokenizer_fingerprint(
        (CLOUD / "target" / "tokenizer.json").read_bytes()
    )
