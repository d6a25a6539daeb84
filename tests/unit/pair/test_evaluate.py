"""A whole evaluation of the bundled pair on a few requests: the figures hold together, and reach manifest and page."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.generate import generate
from outrider_edge.session.events import GenerateRequest
from outrider_edge.session.policy import DraftPolicy
from outrider_pair.cli import evaluate
from outrider_pair.evaluate import load_pair
from outrider_pair.rounds import answer
from outrider_pair.tables import tables
from outrider_shared.calibration import Calibrations
from outrider_shared.errors import ConfigError, MismatchError
from outrider_shared.packs import bundled_pack, read_pack
from outrider_shared.sampling import SamplingParams
from outrider_shared.sampling.rule import Guess
from support.browser import VIEWS, Pages, chromium, fits, needs_chromium, shoot

QUICK = ["--limit", "2", "--max-tokens", "16", "--temperature", "1", "--temperature", "0", "--json"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A copy of the bundled pack that may be written to."""
    return shutil.copytree(bundled_pack(), tmp_path_factory.mktemp("packs") / "draft")


@pytest.fixture(scope="module")
def result(pack, tmp_path_factory):
    """Of one run with everything on."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("report")
    arguments = [*QUICK, "--pack", str(pack), "--pack", "bundled", "--report", str(folder)]
    ran = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout), folder


class Knowing:
    """Proposes what the target will choose."""

    def __init__(self, answer: list[int]) -> None:
        self._answer = answer

    def propose(self, tokens, params, width):
        return Guess((self._answer[len(tokens)],), (0.0,), 9.0)


def test_rounds_give_plain_tokens_and_a_perfect_draft_is_accepted_whole(tiny):
    """Ten tokens in bursts of four: every step commits four drafts and one of its own, the last what is left."""
    engine = build_engine(tiny, EngineConfig(kv_tokens=1024))
    params = SamplingParams(0.8, seed=3)
    plain = generate(engine, [1, 2, 3], params, 10, ignore_eos=True).tokens
    request = GenerateRequest((1, 2, 3), 10, params, ignore_eos=True)
    policy = DraftPolicy(depth=4, width=1, stop_survival=0.0)
    told = answer(engine, request, Knowing([1, 2, 3, *plain]), policy, Calibrations())
    assert told.tokens == plain
    assert (told.usage.steps, [burst.accepted for burst in told.bursts]) == (2, [4, 4])
    engine.pool.check()


def test_the_first_temperature_is_the_main_one_and_the_same_pack_gives_the_same_figures(result):
    figures, _ = result
    first, second = figures["packs"]
    cells = {(cell["temperature"], cell["shape"]): cell for cell in first["acceptance"]}
    assert figures["tokens_per_step"] == cells[1.0, "tree"]["tokens_per_step"]
    assert set(cells) == {(t, shape) for t in (0.0, 1.0) for shape in ("tree", "chain")}
    assert first["acceptance"] == second["acceptance"]
    assert {row["ratio"] for row in figures["against"]["ratios"]} == {1.0}


def test_packs_are_set_against_each_other_even_if_they_have_one_name(result):
    """The second pack's ratios, in the JSON object and as a table: the same draft, so 1 with no doubt."""
    figures, _ = result
    against = figures["against"]
    assert {row["number"] for row in against["ratios"]} == {0, 1}
    assert against["base_number"] == 0
    table = list(tables(figures))[1]
    assert table.row_count == 4
    assert list(table.columns[-1].cells) == ["1.000-1.000"] * 4


def test_figures_of_a_cell_hold_together(result):
    for cell in result[0]["packs"][0]["acceptance"]:
        low, high = cell["interval"]
        assert low <= cell["tokens_per_step"] <= high
        assert cell["tokens"] == sum(each["tokens"] for each in cell["domains"].values())
        assert cell["by_depth"][0]["drafted"] <= cell["steps"]
        assert sum(cell["passes_per_token"].values()) > 0


def test_the_page_holds_its_plots_and_the_folder_every_key(result):
    figures, folder = result
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == len(list(folder.glob("*.png"))) == 5
    assert "http" not in page
    assert page.count("1.000 to 1.000") == 4  # the second pack against the first, of the same name
    assert "bundled int8 (2), tree, T = 1<" in page
    assert json.loads((folder / "report.json").read_text()) == figures


@needs_chromium
def test_the_page_fits_a_phone_and_follows_the_scheme(result):
    """Wide tables scroll in themselves; nothing is asked of a network."""
    _, folder = result
    with chromium() as browser:
        pages = Pages(browser, (folder / "report.html").as_uri())
        grounds = {}
        for view in VIEWS:
            page = pages.open(view)
            assert fits(page), view
            shoot(page, f"report-{view}", whole=True)
            grounds[view] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        pages.close()
    assert grounds["light"] == "rgb(255, 255, 255)" != grounds["dark"] == grounds["phone"]
    assert not pages.complaints


def test_written_figures_are_in_the_manifest_and_steer_the_device(pack):
    arguments = ["--limit", "1", "--max-tokens", "12", "--temperature", "0", "--pack", str(pack), "--write", "--json"]
    ran = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    figures, manifest = json.loads(ran.stdout), read_pack(pack).manifest
    assert manifest.evaluation["pair"]["target"] == figures["target"]
    assert "export" in manifest.evaluation
    assert [list(pair) for pair in manifest.survival] == figures["packs"][0]["survival"]
    with pytest.raises(ConfigError, match="holds the evaluation for target bundled"):
        CliRunner().invoke(evaluate, [*arguments, "--weights", "int8"], catch_exceptions=False)


def test_a_recipe_lies_below_the_flags(tmp_path):
    recipe = tmp_path / "eval.toml"
    recipe.write_text('data = ["bundled"]\nlimit = 1\ntemperature = [0.7]\nmax-tokens = 9\nseed = 5\n')
    ran = CliRunner().invoke(evaluate, ["--config", str(recipe), "--seed", "6", "--json"], catch_exceptions=False)
    figures = json.loads(ran.stdout)
    assert (figures["requests"], figures["temperature"]) == (1, 0.7)
    assert (figures["settings"]["max_tokens"], figures["settings"]["seed"]) == (9, 6)


def test_a_wrong_recipe_is_told_by_key(tmp_path):
    recipe = tmp_path / "eval.toml"
    for text, told in (("limits = 1\n", "no limits"), ("limit = true\n", "limit is True"), ("[data]\n", "data is {}")):
        recipe.write_text(text)
        with pytest.raises(ConfigError, match=told):
            CliRunner().invoke(evaluate, ["--config", str(recipe)], catch_exceptions=False)
    recipe.write_text('limit = "x"\n')
    ran = CliRunner().invoke(evaluate, ["--config", str(recipe)], catch_exceptions=False)
    assert ran.exit_code == 2
    assert "'x' is not a valid integer" in ran.output


def test_the_recipe_that_ships_is_read():
    with pytest.raises(ConfigError, match=r"held-out/smart-home\.jsonl cannot be read"):
        CliRunner().invoke(evaluate, ["--config", "bundled-eval"], catch_exceptions=False)


def test_a_pack_for_another_target_is_refused_before_anything_runs(tiny_folder):
    with pytest.raises(MismatchError, match="a draft for another target"):
        load_pair(str(tiny_folder), [bundled_pack()])
