"""Driving the onnxruntime-genai model builder: offline, in this process, without its chatter.

Precisions, measured on a trained model of 0.26 M and a random one of 1 M parameters with 4096 tokens (decision 0003):

- `int8` is weight-only (`MatMulNBits`, blocks of 32, k_quant). Dynamic int8 (`quantize_dynamic`) is a quarter quicker
  at eight rows of the 1 M model, but that is 50 us; its logits are worse (0.0125 total variation against 0.0094, and
  0.0202 with the reduced range that devices without VNNI need), and they depend on the other rows of the pass.
- `int4` is built here with its LM head in int8 (`k_quant_last`); which other matrices go back to int8 is measured later
  (`mixed.py`). `int4-all`: none, nor the head (`k_quant`).
- `int8-dynamic` is built as fp32 and quantised when the graph is open (`dynamic.py`).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from typing import TYPE_CHECKING, Any

import onnx
from onnxruntime_genai.models import builder
from safetensors import SafetensorError

from outrider_cloud.pack.graph import Shapes
from outrider_shared.errors import ModelError, PackError
from outrider_shared.files import is_full
from outrider_shared.packs import Precision

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OPTIONS = {
    Precision.FP32: [],
    Precision.INT8_DYNAMIC: [],
    Precision.INT8: ["algo_config=k_quant"],
    Precision.INT4: ["algo_config=k_quant_last"],
    Precision.INT4_ALL: ["algo_config=k_quant"],
}
_BUILT_AS = {Precision.INT8_DYNAMIC: "fp32", Precision.INT4_ALL: "int4"}  # the builder's word, where it differs
_BLOCKS = (32, 16, 64, 128)


def build_graph(
    source: Path, config: dict[str, Any], precision: Precision, scratch: Path
) -> tuple[onnx.ModelProto, Shapes]:
    """Build the ONNX graph of a Hugging Face folder.

    Args:
        source: The folder.
        config: Its config.json.
        precision: How to store the weights.
        scratch: An existing folder for the builder's files.

    Returns:
        The builder's graph with its weights inside, and its shapes.

    Raises:
        ModelError: The builder does not know the architecture, or fails at it.
        PackError: The disk is full.
    """
    options = ["hf_token=false", *_OPTIONS[precision]]
    if precision in {Precision.INT4, Precision.INT4_ALL}:
        options.append(f"block_size={block_size(config)}")
    try:
        with _quiet():
            _run_builder(source, precision, scratch, options)
        model = onnx.load(scratch / "model.onnx")
        decoder = json.loads((scratch / "genai_config.json").read_bytes())["model"]["decoder"]
    except Exception as error:  # a script of Microsoft's that fails in any way it likes
        if is_full(error):
            raise PackError(f"cannot write into {scratch}: {error}", hint="the disk is full") from error
        if isinstance(error, (OSError, SafetensorError)):
            raise ModelError(f"the weights of {source} cannot be read: {error}") from error
        raise ModelError(
            f"the onnxruntime-genai builder cannot export {config.get('architectures')} as {precision}: {error!r}",
            hint="llama, qwen2, qwen3 and smollm3 are known to work",
        ) from error
    return model, Shapes(
        layers=decoder["num_hidden_layers"],
        kv_heads=decoder["num_key_value_heads"],
        head_dim=decoder["head_size"],
        vocab_size=config["vocab_size"],
        unrotated=frozenset(i for i, rotates in enumerate(config.get("no_rope_layers") or []) if not rotates),
    )


def _run_builder(source: Path, precision: Precision, scratch: Path, options: list[str]) -> None:
    arguments = {
        "model_name": None,
        "input_path": str(source),
        "output_dir": str(scratch),
        "precision": _BUILT_AS.get(precision, str(precision)),
        "execution_provider": "cpu",
        "cache_dir": str(scratch),
    }
    parsed = builder.parse_extra_options(**arguments, extra_options=options)
    config = parsed["hf_details"]["hf_config"]
    if getattr(config, "no_rope_layers", None):
        # The builder trips over layers without rotary embedding; `patch_graph` takes it out of them afterwards.
        config.no_rope_layers = [1] * len(config.no_rope_layers)
    builder.create_model(**arguments, **parsed)


def block_size(config: dict[str, Any]) -> int:
    """The first block size that cuts every weight into an even number of blocks: int4 zero points come in pairs.

    Args:
        config: A config.json.

    Raises:
        ModelError: none does.
    """
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    depths = (config["hidden_size"], heads * head_dim, config["intermediate_size"])
    for size in _BLOCKS:
        if all(-(-depth // size) % 2 == 0 for depth in depths):
            return size
    raise ModelError(f"no block size in {_BLOCKS} cuts widths {depths} into pairs of blocks", hint="pack it as int8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
