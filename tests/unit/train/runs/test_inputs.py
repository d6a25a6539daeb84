"""What is wrong with data, recipes and targets is told by name, before anything is trained."""

import json
import shutil
from pathlib import Path

import pytest
import zstandard
from click.testing import CliRunner

from outrider_cloud.train import preflight
from outrider_cloud.train.cli import train
from outrider_cloud.train.runs.inputs import source_of
from outrider_cloud.train.settings import DataConfig, DraftRecipe, TargetRecipe, parse_set, read_recipe
from outrider_cloud.train.texts.corpus import CorpusError
from outrider_cloud.train.texts.documents import Reading, read_documents
from outrider_cloud.train.texts.sources import FileSource, NoSource
from outrider_shared.errors import ConfigError, MismatchError, ModelError
from unit.train.toys import toy_model, toy_tokenizer, write_folder, write_texts

BROKEN = ['{"text": "one"}', '{"text": "two"', '{"words": "three"}', "[4]", '{"text": "five"}']


def write(path: Path, text: str) -> Path:
    data = text.encode()
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_a_broken_line_is_named_and_refused(tmp_path: Path, name: str):
    with pytest.raises(CorpusError, match=rf"{name}:2: not JSON.*--skip-broken"):
        list(read_documents([write(tmp_path / name, "\n".join(BROKEN))], Reading()))


def test_or_skipped_and_told(tmp_path: Path):
    reading = Reading(skip_broken=True)
    found = list(read_documents([write(tmp_path / "a.jsonl", "\n".join(BROKEN))], reading))
    assert [document.text for document in found] == ["one", "five"]
    assert reading.skipped_count == 3
    assert "a.jsonl:3" in reading.skipped[1]


def test_bytes_that_are_no_text_are_a_broken_line(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"good\n\n\xff\xfe\n\nfine\n")
    with pytest.raises(CorpusError, match=r"a.txt:3: not UTF-8"):
        list(read_documents([tmp_path / "a.txt"], Reading()))
    assert [d.text for d in read_documents([tmp_path / "a.txt"], Reading(skip_broken=True))] == ["good", "fine"]


def test_data_that_a_recipe_would_not_read_is_refused(tmp_path: Path):
    data = write_texts(tmp_path / "a.jsonl", 3)
    with pytest.raises(ConfigError, match=r"--data would not be read: data.source is 'nothing' .*data.source=files"):
        source_of(DataConfig(source="nothing"), [data], toy_tokenizer(), "", Reading(), [0])
    assert isinstance(source_of(DataConfig(source="nothing"), [], toy_tokenizer(), "", Reading(), [0]), NoSource)


def test_held_out_texts_are_never_trained_on(tmp_path: Path):
    source = FileSource((write_texts(tmp_path / "a.jsonl", 300),), toy_tokenizer(), held_out_share=0.2)
    trained = {tuple(example.ids.tolist()) for example in source.examples(0)}
    held = {tuple(example.ids.tolist()) for example in source.held_out()}
    assert len(trained) + len(held) == 300
    assert 30 < len(held) < 90
    assert not trained & held


@pytest.mark.parametrize("name", ["bundled-draft", "bundled-further", "own-samples", "stories-draft"])
def test_the_draft_recipes_that_ship_are_read(name: str):
    assert read_recipe(DraftRecipe, name, {"fit.steps": 7}).fit.steps == 7


def test_the_target_recipe_that_ships_is_read():
    assert read_recipe(TargetRecipe, "bundled-target", {}).model["hidden_size"] == 256


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (("fit.stepz=3",), "no fit.stepz"),
        (("fit.steps=many",), "fit.steps is 'many'"),
        (("distil.loss=hope",), "losses:"),
        (("fit.steps=9", "fit.optimizer=sgd"), "none of muon, adamw"),
        (("fit=3",), "must be a table"),
        (("fit.steps",), "has no '='"),
    ],
)
def test_a_wrong_recipe_is_told_by_key(over: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        read_recipe(DraftRecipe, "", parse_set(over))


def test_an_unknown_recipe_names_those_that_there_are():
    with pytest.raises(ConfigError, match="bundled-draft, bundled-further, bundled-target, own-samples"):
        read_recipe(DraftRecipe, "mine", {})


def test_a_full_disk_is_told_before_the_first_step(tmp_path: Path):
    with pytest.raises(ConfigError, match="the run needs up to"):
        preflight.check_disk(tmp_path / "not" / "there", shutil.disk_usage(tmp_path).free, 10)
    preflight.check_disk(tmp_path, 0, 10)


def test_a_student_with_another_tokenizer_is_refused(tmp_path: Path):
    one, two = write_folder(toy_model(0), tmp_path / "one"), write_folder(toy_model(0), tmp_path / "two")
    preflight.check_student(one, two)
    text = json.loads((two / "tokenizer.json").read_text())
    text["model"]["merges"].pop()
    (two / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(MismatchError, match="is not that of"):
        preflight.check_student(one, two)


def test_a_target_that_the_cloud_cannot_serve_is_refused(tmp_path: Path):
    folder = write_folder(toy_model(0), tmp_path / "t")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        preflight.check_target(folder)


def test_a_draft_that_no_pack_can_hold_is_refused():
    with pytest.raises(ModelError, match="bitnet cannot be made into a pack"):
        preflight.check_export("bitnet")


def test_a_draft_from_scratch_has_its_sizes_told():
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with pytest.raises(ConfigError, match=r"scratch needs student\.shape\.intermediate_size \("):
        preflight.check_shape(shape)
    preflight.check_shape({**shape, "intermediate_size": 172})


def test_a_target_is_trained_and_pruned_by_the_commands(tmp_path: Path):
    data = write_texts(tmp_path / "texts.jsonl", 400)
    write_folder(toy_model(0), tmp_path / "toy")
    recipe = tmp_path / "toy.toml"
    recipe.write_text(
        f'tokenizer = "{tmp_path / "toy"}"\ntokens_per_batch = 400\n[data]\nlongest = 64\n[model]\n'
        'model_type = "llama"\nhidden_size = 32\nnum_hidden_layers = 2\nnum_attention_heads = 2\n'
        "num_key_value_heads = 1\nhead_dim = 16\nintermediate_size = 32\nmax_position_embeddings = 128\n"
        "tie_word_embeddings = true\n[fit]\nsteps = 30\nwarmup_steps = 2\nvalidate_every = 10\n"
    )
    run, out = CliRunner(), tmp_path / "out"
    told = run.invoke(train, ["target", "--config", str(recipe), "--data", str(data), "--out", str(out)])
    assert told.exit_code == 0, told.output
    figures = json.loads((out / "training.json").read_text())
    assert figures["steps"] == 30
    assert figures["valid"] < 5
    small = tmp_path / "small"
    told = run.invoke(
        train, ["prune", "--target", str(out), "--keep", "layers=1,hidden=16", "--data", str(data), "--out", str(small)]
    )
    assert told.exit_code == 0, told.output
    assert json.loads((small / "config.json").read_text())["hidden_size"] == 16
