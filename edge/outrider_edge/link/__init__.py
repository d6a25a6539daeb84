"""How the device reaches the cloud: the interface, gRPC, and what to do when it breaks.

`link` is what the session needs of a transport, `grpc_link` the real one, `backoff` how long to wait between tries.
"""

from __future__ import annotations

import os

# Its own lines among ours, such as one for each handshake that failed; it reads this when it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
