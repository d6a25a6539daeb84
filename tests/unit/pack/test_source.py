"""What is taken from a Hugging Face folder."""

import json
from pathlib import Path

import pytest

from outrider_cloud.pack.source import read_source
from outrider_shared.errors import ConfigError
from unit.pack.tiny import tokenizer_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    return tmp_path


def test_a_bare_folder_has_no_chat_and_no_licence(folder: Path):
    source = read_source(folder)
    assert (source.chat_template, source.licence, source.attribution) == (None, "", "")
    assert source.eos_ids == (2,)


def test_a_model_may_end_a_text_in_several_ways(folder: Path):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2, 7]}))
    assert read_source(folder).eos_ids == (2, 7)


def test_a_model_may_never_end_a_text(folder: Path):
    (folder / "config.json").write_text("{}")
    assert read_source(folder).eos_ids == ()


@pytest.mark.parametrize(
    "template", ["{{ a }}", [{"name": "tools", "template": "b"}, {"name": "default", "template": "{{ a }}"}]]
)
def test_a_chat_template_is_found_in_the_tokenizer_config(folder: Path, template: object):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert read_source(folder).chat_template == "{{ a }}"


def test_a_template_file_comes_before_the_tokenizer_config(folder: Path):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    (folder / "chat_template.jinja").write_text("new")
    assert read_source(folder).chat_template == "new"


def test_a_broken_template_or_tokenizer_is_told_by_name(folder: Path):
    (folder / "chat_template.jinja").write_text("hi\n{% for x in %}")
    with pytest.raises(ConfigError, match="line 2 of the chat template"):
        read_source(folder)
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(ConfigError, match=r"tokenizer\.json is no tokenizer"):
        read_source(folder)


def test_a_licence_is_its_text_else_what_the_card_says(folder: Path):
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\ntags: [x]\n---\nlicense: not this\n")
    assert read_source(folder).licence == "mit"
    (folder / "LICENSE").write_text("Do what you like.")
    (folder / "NOTICE").write_text("Thanks to all.")
    source = read_source(folder)
    assert (source.licence, source.attribution) == ("Do what you like.", "Thanks to all.")


def test_a_card_without_front_matter_names_no_licence(folder: Path):
    (folder / "README.md").write_text("# A model\nlicense: mit\n")
    assert read_source(folder).licence == ""


def test_a_folder_that_is_no_model_is_refused(folder: Path):
    with pytest.raises(ConfigError, match=r"no model folder at .*not a hub name"):
        read_source(folder / "org" / "name")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds no object"):
        read_source(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot read .*config\.json"):
        read_source(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        read_source(folder)
