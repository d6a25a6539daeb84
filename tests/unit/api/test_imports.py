"""What a device must not need."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_draft_that_is_loaded_tells_nobody(tmp_path):
    """ONNX Runtime reports to its maker by default, and keeps an id of the device for that: neither happens here."""
    code = (
        "import ctypes, os\n"
        "from outrider_edge.device import Device\n"
        "Device.open(('127.0.0.1:1',), 'bundled')\n"
        "getenv = ctypes.CDLL(None).getenv\n"
        "getenv.restype = ctypes.c_char_p\n"
        "print(getenv(b'ORT_DISABLE_TELEMETRY').decode())"
    )
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    left = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PATH": os.environ["PATH"], **home}
    done = subprocess.run([sys.executable, "-c", code], env=left, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
    assert list(tmp_path.rglob("*")) == []


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
