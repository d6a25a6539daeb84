"""The gRPC service around the engine.

`server` is the process: sockets, TLS, health, reflection, drain. `handler` is one session's stream, without gRPC in it.
`opening` checks what a device asks for, `outbox` merges what the engine says into messages, `directory` knows who is
connected.
"""

from __future__ import annotations

import os

# Its own lines among ours, such as one for each handshake that failed; it reads this when it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
