"""What is wrong with data, recipes and targets is told by name, before anything is trained."""

import json
import shutil
from pathlib import Path

import pytest
import zstandard
from click.testing import CliRunner

from outrider_cloud.train import preflight
from outrider_cloud.train.cli import train
from outrider_cloud.train.loop.world import World
from outrider_cloud.train.options import check_out, start_anew, work_folder
from outrider_cloud.train.prune.keep import Keep
from outrider_cloud.train.runs.inputs import source_of
from outrider_cloud.train.settings import DataConfig, DraftRecipe, TargetRecipe, parse_set, read_recipe
from outrider_cloud.train.texts.corpus import CorpusError
from outrider_cloud.train.texts.documents import Reading, read_documents
from outrider_cloud.train.texts.sources import FileSource, NoSource
from outrider_shared.errors import ConfigError, MismatchError, ModelError, StorageError
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


def test_the_target_recipes_that_ship_are_read():
    assert read_recipe(TargetRecipe, "bundled-target", {}).model["hidden_size"] == 256
    assert read_recipe(TargetRecipe, "bundled-target-further", {}).init == "bundled"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (("fit.stepz=3",), "no fit.stepz"),
        (("fit.steps=many",), "fit.steps is 'many'"),
        (("distil.loss=hope",), "losses:"),
        (("fit.steps=9", "fit.optimizer=sgd"), "none of muon, adamw"),
        (("fit=3",), "must be a table"),
        (("fit.steps",), "has no '='"),
        (("fit.steps=0",), "^fit: steps 0"),
        (("fit.muon_lr=-1.0",), "muon_lr -1.0 must be"),
        (("fit.adam_lr=nan",), "adam_lr nan must be"),
        (("data.source=hope",), "files, smart-home, nothing"),
        (("data.prompt_tokens=0",), "prompt_tokens 0"),
        (("distil.top_k=0",), "top_k 0: at least 1"),
        (("distil.on_policy=[0.1]",), "a list of 2 numbers"),
        (("distil.text_share=7",), "shares are from 0 to 1"),
        (("distil.writing.temperatures=[]",), "at least one"),
        (("distil.writing.temperatures=[-1.0]",), "each from 0 on"),
        (("distil.writing.rows=0",), "rows 0 are at least 1"),
    ],
)
def test_a_wrong_recipe_is_told_by_key(over: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        read_recipe(DraftRecipe, "", parse_set(over))


def test_a_recipe_without_steps_has_those_of_its_kind():
    assert read_recipe(DraftRecipe, "", parse_set(("fit.muon_lr=0.01",))).fit.steps == DraftRecipe().fit.steps


def test_an_unknown_recipe_names_those_that_there_are():
    with pytest.raises(
        ConfigError, match="bundled-draft, bundled-eval, bundled-further, bundled-target, bundled-target-further"
    ):
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


def test_widths_that_cannot_be_are_told_before_any_text_is_written(tmp_path: Path):
    config = preflight.check_target(write_folder(toy_model(0, layers=4, hidden=32), tmp_path / "t"))
    half = preflight.check_pruning(config, Keep(share=0.5, layers=2))
    assert half["intermediate_size"] <= 24
    with pytest.raises(ConfigError, match="layers=99 is more than the model's 4"):
        preflight.check_pruning(config, Keep(layers=99))
    with pytest.raises(ConfigError, match="no widths of this model leave 1% of its parameters"):
        preflight.check_pruning(config, Keep(share=0.01))
    with pytest.raises(ModelError, match="pack it as int8"):
        preflight.check_precision("int4", half | {"intermediate_size": 8})
    preflight.check_precision("int8", half | {"intermediate_size": 8})
    with pytest.raises(ConfigError, match=r"precision is 'int3' \(fp32"):
        preflight.check_precision("int3", half)


def test_a_broken_tokenizer_is_told_by_its_file(tmp_path: Path):
    folder = write_folder(toy_model(0), tmp_path / "t")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"t/tokenizer\.json is no tokenizer"):
        preflight.check_target(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llamaa"}, r"\[model\] makes no model: Unrecognized model identifier: llamaa\.?$"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size.*expected int, got str"),
        ({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 7}, "not a multiple"),
    ],
)
def test_fields_that_make_no_model_are_one_sentence(fields: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message) as told:
        preflight.new_model(fields, 0, "[model]")
    assert "\n" not in str(told.value)


def test_starting_anew_removes_what_is_a_runs_and_nothing_else(tmp_path: Path):
    work = tmp_path / "o.work"
    for name in (
        "samples/ids",
        "held-out/meta.json",
        "round-3/ids",
        "checkpoint.pt",
        "tokenizer.json",
        "mine/thesis.txt",
    ):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("")
    start_anew(work, World())
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [
        "o.work/mine/thesis.txt"
    ]


def test_what_is_in_the_way_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file"):
        check_out(tmp_path / "file", force=True, holds="manifest.json")
    with pytest.raises(StorageError, match="file/o: "):
        check_out(tmp_path / "file" / "o", force=False, holds="manifest.json")
    with pytest.raises(ConfigError, match=r"file is a file \(--work"):
        work_folder(tmp_path / "o", tmp_path / "file")


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
