"""Drafting on the device: the draft model's runtime, and the drafters that propose tokens with it.

ONNX Runtime's builds tell their maker about devices, models and sessions, unless this is set before they are loaded.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
