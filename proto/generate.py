"""Generate shared/outrider_wire from the .proto files; with --check, compare instead of writing.

Paths follow the package: proto/outrider_wire/v1/x.proto -> outrider_wire.v1 -> shared/outrider_wire/v1/x_pb2.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
TARGET = ROOT.parent / "shared" / "outrider_wire"


def generate(out: Path) -> None:
    """Write Python, stubs and gRPC code for every .proto file below this folder to `out`."""
    sources = sorted(str(path) for path in ROOT.rglob("*.proto"))
    builtin = Path(grpc_tools.__file__).parent / "_proto"
    kinds = [f"--{kind}={out}" for kind in ("python_out", "mypy_out", "grpc_python_out")]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{builtin}", *kinds, *sources]) != 0:
        raise SystemExit("protoc failed")
    for folder in (out / "outrider_wire", out / "outrider_wire" / "v1"):
        (folder / "__init__.py").write_text('"""Generated from proto/outrider_wire; do not edit."""\n')


def main() -> None:
    """Write the generated package, or check that the committed one is what would be written."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*.py*") if p.is_file()}
    held = {Path("outrider_wire") / p.relative_to(TARGET): p for p in TARGET.rglob("*.py*") if p.suffix != ".pyc"}
    if "--check" in sys.argv[1:]:
        stale = [str(n) for n in fresh.keys() | held.keys() if n not in held or held[n].read_bytes() != fresh.get(n)]
        if stale:
            raise SystemExit(f"generated code differs from proto/: {', '.join(sorted(stale))}; run `make proto`")
        return
    for name, data in fresh.items():
        path = TARGET.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
