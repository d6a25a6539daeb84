"""Settings: what overrides what, and that nothing mistyped is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider_edge.api.settings import find_file, load
from outrider_shared.errors import ConfigError


def _file(tmp_path, text):
    path = tmp_path / "edge.toml"
    path.write_text(text)
    return path


def test_file_environment_and_flags_override_in_this_order(tmp_path):
    file = _file(tmp_path, '[serve]\nlisten = "127.0.0.1:1"\ndrain_s = 3\n[draft]\nthreads = 2\n')
    environment = {"OUTRIDER_EDGE_SERVE_LISTEN": "127.0.0.1:2", "OUTRIDER_EDGE_CLOUD_ADDRESSES": "a:1, b:2",
                   "OUTRIDER_EDGE_DEFAULTS_SMOOTH": "yes"}  # fmt: skip
    config = load(file, {("serve", "listen"): "127.0.0.1:3", ("draft", "pack"): None}, environment)
    assert config.serve.listen == "127.0.0.1:3"
    assert config.serve.drain_s == 3.0
    assert config.cloud.addresses == ("a:1", "b:2")
    assert config.draft.threads == 2
    assert config.defaults.smooth is True
    assert load(file, {}, environment).serve.listen == "127.0.0.1:2"
    assert load(file, {}, {}).serve.listen == "127.0.0.1:1"


@pytest.mark.parametrize(
    ("text", "said"),
    [("[serv]\n", "section serv is unknown"), ("[serve]\nlissen = 1\n", "serve.lissen is unknown"),
     ("listen = 1\n", "outside of any section"), ("[draft]\nthreads = 0\n", "draft.threads is 0"),
     ('[draft]\nthreads = "many"\n', "draft.threads is 'many'"), ("[serve]\nplayground = 1\n", "serve.playground is 1"),
     ("[limits]\nconcurrent = -1\n", "limits.concurrent is -1"), ("[cloud]\noffline = 'maybe'\n", "cloud.offline"),
     ("[draft]\nthreads = 1.5\n", "draft.threads is 1.5"), ("not toml", "cannot be read"),
     ("[serve]\norigins = ['https://app.example/']\n", "serve.origins is 'https://app.example/'"),
     ("[serve]\norigins = ['app.example']\n", "serve.origins"), ("[serve]\nhosts = ['edge:8484']\n", "serve.hosts")],
)  # fmt: skip
def test_mistakes_are_told_with_their_name(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        load(_file(tmp_path, text), {}, {})


def test_named_file_must_exist_and_others_need_not(tmp_path):
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    with pytest.raises(ConfigError, match="cannot be read"):
        find_file(Path("x" * 300), {})
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        find_file(None, {"OUTRIDER_EDGE_CONFIG": str(tmp_path / "nowhere.toml")})
    (tmp_path / "outrider").mkdir()
    (tmp_path / "outrider" / "edge.toml").write_text("")
    assert find_file(None, home) == tmp_path / "outrider" / "edge.toml"
