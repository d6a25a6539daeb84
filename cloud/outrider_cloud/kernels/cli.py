"""The command `outrider kernels`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from outrider_shared.cli import TypedErrors
from outrider_shared.logs import configure_logs


@click.group(cls=TypedErrors)
def kernels() -> None:
    """The GPU kernels."""
    configure_logs()


@kernels.command()
@click.option(
    "--arch", default="sm_90a", show_default=True, help="GPU architecture; the card itself need not be there."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(arch: str, *, as_json: bool) -> None:
    """Compile every kernel with NVRTC; registers, and an error if any spill. Needs no GPU and no driver."""
    from outrider_cloud.kernels.cuda import gate  # noqa: PLC0415 - torch is slow to import

    compiled = gate.check(arch)
    if as_json:
        entries = [asdict(entry) for entry in compiled]
        click.echo(json.dumps({"arch": arch, "nvrtc": gate.Nvrtc().version, "kernels": entries}))
        return
    table = Table("variant", "kernel", "registers", "spill bytes", "cubin KiB")
    for entry in compiled:
        spill = str(entry.spill_bytes + entry.stack_bytes)
        table.add_row(entry.variant, entry.kernel, str(entry.registers), spill, f"{entry.cubin_bytes / 1024:.0f}")
    Console().print(table)
