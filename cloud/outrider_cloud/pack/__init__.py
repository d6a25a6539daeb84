"""Packing a draft: a Hugging Face folder in, a checked pack for the edge out.

ONNX Runtime's builds tell their maker about devices, models and sessions, unless this is set before they are loaded.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
