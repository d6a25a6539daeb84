"""What a device must not need."""

from __future__ import annotations

import os
import subprocess
import sys


def test_the_daemon_runs_without_torch_or_transformers():
    """Nothing that `outrider edge serve` imports brings in the cloud's or the trainer's libraries."""
    code = (
        "import sys, outrider_edge.cli, outrider_edge.api.daemon, outrider_edge.api.check, outrider_edge.device\n"
        "bad = {'torch', 'transformers', 'outrider_cloud', 'matplotlib', 'llguidance', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
