"""The drafts of the demo: the bundled one, and copies whose weights are disturbed so that they guess worse.

A disturbed pack is whole: its files have their hashes, its graph runs, and it says to its golden prompts what it says.
Nothing on a device can tell that it is bad; only its acceptance at work does.
"""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING

from outrider_shared.errors import ConfigError
from outrider_shared.packs import describe_files, read_pack, write_manifest

if TYPE_CHECKING:
    from pathlib import Path

GRAPH, SCALES = "model.onnx", ".weight_scale"
_SEED = 0


def renamed(pack: Path, folder: Path, name: str) -> Path:
    """The same draft under another name."""
    return disturbed(pack, folder, name, 0.0)


def disturbed(pack: Path, folder: Path, name: str, spread: float) -> Path:
    """A copy in `folder` whose blocks of weights are each scaled by exp(normal of that spread); 0 changes none.

    Raises:
        ConfigError: if there is no onnx to open the graph with, or its weights are not quantised in blocks.
        PackError: if `pack` is no pack.
    """
    manifest = read_pack(pack).manifest
    shutil.copytree(pack, folder)
    if spread:
        _disturb(folder / GRAPH, spread)
    files = describe_files(folder)
    write_manifest(
        folder, dataclasses.replace(manifest, name=name, files=files, evaluation={}, survival=(), source="demo")
    )
    return folder


def _disturb(graph: Path, spread: float) -> None:
    try:
        import numpy as np  # noqa: PLC0415 - the [train] extra is optional
        import onnx  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise ConfigError(f"the demo needs {error.name}", hint="pip install 'outrider[train]'") from error
    model, random = onnx.load(graph), np.random.default_rng(_SEED)
    found = [tensor for tensor in model.graph.initializer if tensor.name.endswith(SCALES)]
    if not found:
        raise ConfigError(f"{graph} holds no weights in blocks", hint="the demo disturbs int8 and int4 packs only")
    for tensor in found:
        scales = onnx.numpy_helper.to_array(tensor)
        noisy = scales * np.exp(random.normal(0.0, spread, scales.shape)).astype(scales.dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(noisy, tensor.name))
    onnx.save(model, graph)
