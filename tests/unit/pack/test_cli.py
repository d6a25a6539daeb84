"""`outrider pack` as users meet it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from outrider_cloud.pack.cli import pack
from outrider_shared.errors import ConfigError


def test_a_pack_is_made_and_summed_up(model_folder: Callable[[str], Path], tmp_path: Path):
    arguments = ["--model", str(model_folder("tied")), "--out", str(tmp_path / "pack"), "--precision", "int4-all"]
    result = CliRunner().invoke(pack, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert f"{tmp_path / 'pack'}: tied, int4-all, 0.1 MB" in result.stdout
    assert "total variation" in result.stdout
    assert "less acceptance than with fp32" in result.stdout


def test_json_is_all_of_stdout(model_folder: Callable[[str], Path], tmp_path: Path):
    arguments = ["--model", str(model_folder("tied")), "--out", str(tmp_path / "pack"), "--name", "scout", "--json"]
    result = CliRunner().invoke(pack, arguments, catch_exceptions=False)
    told = json.loads(result.stdout)
    assert (told["name"], told["precision"], told["path"]) == ("scout", "fp32", str(tmp_path / "pack"))
    assert told["evaluation"]["export"]["top1"] == 1


def test_an_unknown_precision_is_a_usage_error(tmp_path: Path):
    result = CliRunner().invoke(pack, ["--model", ".", "--out", str(tmp_path / "pack"), "--precision", "fp7"])
    assert result.exit_code == 2


def test_without_the_train_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in ("outrider_cloud.pack.export", "outrider_cloud.pack.build", "onnxruntime_genai.models"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(ConfigError, match=r"packing needs onnxruntime_genai.*pip install 'outrider\[train\]'"):
        CliRunner().invoke(pack, ["--model", ".", "--out", str(tmp_path / "pack")], catch_exceptions=False)
