"""From a Hugging Face folder to a pack: build the graph, open it, check it, describe it, move it in place.

Everything happens in a hidden sibling of the target, which is renamed at the end: a crash or a failed check leaves no
half pack, and an old pack stays until the new one is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from outrider_cloud.pack.build import build_graph
from outrider_cloud.pack.calibration import Calibration
from outrider_cloud.pack.check import check_graph
from outrider_cloud.pack.dynamic import quantise_dynamically
from outrider_cloud.pack.graph import Shapes, patch_graph, window_of
from outrider_cloud.pack.mixed import matrices, mix, most_sensitive
from outrider_cloud.pack.share import share_embedding
from outrider_cloud.pack.source import Source, read_source
from outrider_shared.errors import ConfigError, PackError
from outrider_shared.packs import (
    CHAT_TEMPLATE,
    MANIFEST,
    MODEL,
    MODEL_DATA,
    TOKENIZER,
    Architecture,
    Manifest,
    Pack,
    Precision,
    describe_files,
    read_pack,
    tokenizer_fingerprint,
    tokenizer_size,
    write_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS = ("build the graph", "check it against the model", "write the pack")
_ONE_FILE_BYTES = 2_000_000_000  # protobuf ends at 2 GiB


@dataclasses.dataclass(frozen=True)
class Request:
    """What to pack.

    Attributes:
        model: The Hugging Face folder.
        out: The pack to write.
        precision: How to store the weights.
        name: Name of the draft; the folder's name where empty.
        licence: Replaces what the folder says; likewise `attribution`.
        attribution: Who is to be credited.
        force: Replace a pack that is already at `out`.
    """

    model: Path
    out: Path
    precision: Precision
    name: str = ""
    licence: str = ""
    attribution: str = ""
    force: bool = False


def export_pack(request: Request, report: Callable[[str], None] = lambda _step: None) -> Pack:
    """Make a pack.

    Args:
        request: What to pack.
        report: Called with each of `STEPS` as it begins; for int4 also while its matrices are measured.

    Returns:
        The pack, read back from disk and verified.

    Raises:
        ConfigError: The source is no model folder, or something is in the way at `out`.
        ModelError: The model cannot be exported, or the export does not compute what the model computes.
        PackError: The pack cannot be written.
    """
    _check_target(request.out, force=request.force)
    source = read_source(request.model)
    with _workspace(request.out) as (scratch, draft):
        report(STEPS[0])
        model, architecture = _opened(source, request.precision, scratch)
        told: dict[str, object] = {}
        if request.precision is Precision.INT4:
            model, told["int8_matrices"] = _mixed(source, model, architecture, scratch, report)
        elif request.precision is Precision.INT8_DYNAMIC:
            model = quantise_dynamically(model, scratch)
        _save_graph(model, draft)
        report(STEPS[1])
        told |= dataclasses.asdict(check_graph(draft / MODEL, source.path, architecture, request.precision))
        report(STEPS[2])
        _copy_texts(source, draft)
        write_manifest(draft, _manifest(request, source, architecture, draft, told))
        read_pack(draft)
        _move_in_place(draft, request.out)
    return read_pack(request.out)


def _check_target(out: Path, *, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise ConfigError(f"{out} exists", hint="--force replaces a pack")
    if not (out / MANIFEST).is_file():
        raise ConfigError(f"{out} is not a pack; refusing to replace it", hint="choose another --out")


@contextlib.contextmanager
def _workspace(out: Path) -> Iterator[tuple[Path, Path]]:
    """A folder for the builder's files and one for the pack, beside `out` so that a rename can move it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        root = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise PackError(f"cannot write beside {out}: {error}") from error
    try:
        for folder in ("scratch", "pack"):
            (root / folder).mkdir()
        yield root / "scratch", root / "pack"
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _opened(source: Source, precision: Precision, scratch: Path) -> tuple[onnx.ModelProto, Architecture]:
    """The graph as a draft runs it, and its shapes."""
    folder = scratch / str(precision)
    folder.mkdir()
    model, shapes = build_graph(source.path, source.config, precision, folder)
    share_embedding(model)
    patch_graph(model, shapes)
    return model, _architecture(source, shapes, window_of(model))


def _mixed(
    source: Source, narrow: onnx.ModelProto, architecture: Architecture, scratch: Path, report: Callable[[str], None]
) -> tuple[onnx.ModelProto, list[str]]:
    """`narrow` with what int4 costs most in int8, and the names of those matrices."""
    wide, _ = _opened(source, Precision.INT8, scratch)
    calibration = Calibration(source.path, architecture)

    def cost(model: onnx.ModelProto) -> float:
        _save_graph(model, scratch)
        return calibration.cost(scratch / MODEL)

    kept = most_sensitive(
        wide, narrow, cost, lambda done, count: report(f"measure what int4 costs: matrix {done + 1} of {count}")
    )
    rest = [matrix.output for matrix in matrices(wide, narrow) if matrix not in kept]
    return mix(wide, narrow, rest), [matrix.name for matrix in kept]


def _save_graph(model: onnx.ModelProto, folder: Path) -> None:
    weight_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    try:
        if weight_bytes < _ONE_FILE_BYTES:
            onnx.save(model, folder / MODEL)
        else:
            onnx.save(model, folder / MODEL, save_as_external_data=True, location=MODEL_DATA)
    except OSError as error:
        raise PackError(f"cannot write {folder / MODEL}: {error}", hint="is the disk full?") from error


def _architecture(source: Source, shapes: Shapes, window: int | None) -> Architecture:
    context = source.config["max_position_embeddings"]
    return Architecture(
        layers=shapes.layers,
        kv_heads=shapes.kv_heads,
        head_dim=shapes.head_dim,
        vocab_size=shapes.vocab_size,
        # A sliding window counts slots, and siblings would push the text out of it: stay inside.
        context_length=min(context, window or context),
    )


def _copy_texts(source: Source, folder: Path) -> None:
    (folder / TOKENIZER).write_bytes(source.tokenizer)
    if source.chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(source.chat_template, "utf-8")


def _manifest(
    request: Request, source: Source, architecture: Architecture, folder: Path, result: dict[str, object]
) -> Manifest:
    return Manifest(
        name=request.name or source.path.resolve().name,
        precision=request.precision,
        architecture=architecture,
        eos_ids=source.eos_ids,
        tokenizer_fingerprint=tokenizer_fingerprint(source.tokenizer),
        tokenizer_size=tokenizer_size(source.tokenizer),
        files=describe_files(folder),
        source=source.path.resolve().name,
        licence=request.licence or source.licence,
        attribution=request.attribution or source.attribution,
        evaluation={"export": result},
    )


def _move_in_place(draft: Path, out: Path) -> None:
    old = draft.parent / "old"
    try:
        if out.exists():
            out.rename(old)
        draft.rename(out)
    except OSError as error:
        if old.exists() and not out.exists():
            old.rename(out)
        raise PackError(f"cannot move the pack to {out}: {error}") from error
