"""Writing a model as an ordinary Hugging Face folder."""

import json
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import bfloat16, nn

from outrider_cloud.train.chat import END, PAD, TEMPLATE

_NOISE = (
    "_name_or_path",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
)


def save_folder(model: nn.Module, tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write config, generation config, bfloat16 weights (tied head once), tokenizer and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, object] = model.config.to_dict()  # type: ignore[union-attr, operator]
    config = {key: value for key, value in config.items() if value is not None and key not in _NOISE}
    # Written although it is null: a Llama's default is token 1, which is the end token here.
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "bos_token_id": None}
    _write(folder / "config.json", config)
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    _write(folder / "generation_config.json", {"eos_token_id": end, "pad_token_id": pad, "do_sample": False})
    weights = {
        name: tensor.to(bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    _write(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
