"""Flags from a file: below the environment and the command line, and nothing in it is passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from outrider_shared.errors import ConfigError
from outrider_shared.flags import config_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(context_settings={"auto_envvar_prefix": "OUTRIDER_TEST"})
@config_option
@click.option("--kv-tokens", type=int, default=1)
@click.option("--buckets", default="1")
@click.option("--exact/--no-exact", default=False)
def told(kv_tokens: int, buckets: str, *, exact: bool) -> None:
    click.echo(f"{kv_tokens} {buckets} {exact}")


def run(*arguments: str, **environment: str) -> str:
    return CliRunner().invoke(told, arguments, env=environment, catch_exceptions=False).output.strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text("kv-tokens = 2\nbuckets = [4, 8]\nexact = true\n")
    return path


def test_a_flag_overrides_the_environment_and_that_the_file(file: Path):
    assert run() == "1 1 False"
    assert run("--config", str(file)) == "2 4,8 True"
    assert run(OUTRIDER_TEST_CONFIG=str(file)) == "2 4,8 True"
    assert run("--config", str(file), OUTRIDER_TEST_KV_TOKENS="3", OUTRIDER_TEST_EXACT="0") == "3 4,8 False"
    assert run("--kv-tokens", "4", "--config", str(file), OUTRIDER_TEST_KV_TOKENS="3") == "4 4,8 True"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("colour = 1", "'colour'"),
        ("config = 'x'", "'config'"),
        ("[exact]\na = 1", "exact is a table"),
        ("=", "cannot read"),
    ],
)
def test_what_a_file_cannot_say_is_named(file: Path, text: str, word: str):
    file.write_text(text)
    with pytest.raises(ConfigError, match=word):
        run("--config", str(file))


def test_a_file_that_is_missing_and_a_value_that_is_none_are_told(file: Path):
    with pytest.raises(ConfigError, match="No such file"):
        run("--config", str(file.with_name("none.toml")))
    file.write_text('kv-tokens = "many"')
    assert "'many' is not a valid integer" in run("--config", str(file))
