"""Opening the graph of a pack in ONNX Runtime, and seeing that it is what its manifest says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnxruntime as ort

from outrider_shared.errors import PackError

if TYPE_CHECKING:
    from outrider_shared.packs import Manifest, Pack


def open_session(pack: Pack, threads: int) -> ort.InferenceSession:
    """Load the graph of a verified pack.

    Raises:
        PackError: ONNX Runtime cannot load it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, not printed
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(pack.model_path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen kinds, of which it exports none
        raise PackError(
            f"ONNX Runtime {ort.__version__} cannot load {pack.model_path}: {error}", hint="update onnxruntime"
        ) from error


def _expected_inputs(manifest: Manifest) -> set[str]:
    caches = {f"past_key_values.{i}.{side}" for i in range(manifest.architecture.layers) for side in ("key", "value")}
    plain = {"input_ids", "position_ids", "attention_bias", "seqlens_k", "total_sequence_length", "logits_rows"}
    return caches | plain


def check_signature(session: ort.InferenceSession, pack: Pack) -> None:
    """Refuse a graph whose inputs or shapes are not those of its manifest.

    Raises:
        PackError: What is odd about it.
    """
    shape = pack.manifest.architecture
    inputs = {node.name: node.shape for node in session.get_inputs()}
    if inputs.keys() != _expected_inputs(pack.manifest):
        odd = sorted(inputs.keys() ^ _expected_inputs(pack.manifest))
        raise PackError(
            f"{pack.model_path} has other inputs than its manifest tells: {odd}", hint="export the pack again"
        )
    cache, logits = inputs["past_key_values.0.key"], session.get_outputs()[0].shape
    if (cache[1], cache[3], logits[-1]) != (shape.kv_heads, shape.head_dim, shape.vocab_size):
        raise PackError(f"{pack.model_path} has KV {cache} and logits {logits}, its manifest says {shape}")
