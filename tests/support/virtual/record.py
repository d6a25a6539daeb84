"""Writes `pair.json` and `pair-t1.json` from the bundled pair, at temperatures 0 and 1.

`PYTHONPATH=cloud:edge:shared:tests python -m support.virtual.record`
"""

from __future__ import annotations

import json

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.generate import generate
from outrider_edge.compare import BUNDLED, read_requests
from outrider_shared.chat import render_chat
from outrider_shared.drafting.drafter import ModelDrafter
from outrider_shared.drafting.runtime import DraftModel
from outrider_shared.packs import bundled_pack, read_pack
from outrider_shared.sampling import SamplingParams
from support.virtual.pair import FOLDER, GREEDY, WARM

_WIDTH = 4
_MOST = 96


def record(name: str, temperature: float, count: int = 40) -> None:
    """Answer held-out requests plainly, then ask the draft at every position of the answers; seeds count from 0."""
    pack = read_pack(bundled_pack())
    engine, model = build_engine(BUNDLED, EngineConfig(), threads=1), DraftModel.load(pack)
    loaded, answers = engine.runner.loaded, []
    for seed, messages in enumerate(read_requests(BUNDLED)[:count]):
        params = SamplingParams(temperature, seed=seed)
        prompt = loaded.tokenizer.encode(render_chat(pack.chat_template or "", messages), add_special_tokens=False).ids
        tokens, drafter = generate(engine, prompt, params, _MOST).tokens, ModelDrafter(model.new_runtime())
        guesses = []
        for index in range(len(tokens)):
            told = drafter.propose(prompt + tokens[:index], params, _WIDTH)
            guesses.append([round(told.margin, 2), *told.tokens])
        answers.append({"prompt": prompt, "tokens": tokens, "guesses": guesses})
    eos = min(loaded.eos)
    result = {"vocabulary": loaded.vocabulary, "eos": eos, "answers": answers}
    text = json.dumps(result, separators=(",", ":")).replace('{"prompt"', '\n{"prompt"') + "\n"
    (FOLDER / name).write_text(text)


if __name__ == "__main__":
    record(GREEDY, 0.0)
    record(WARM, 1.0)
