"""`outrider demo`: the main job on one machine. A cloud and an edge, two processes, real sockets, the bundled pair."""
