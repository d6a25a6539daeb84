"""How the device reaches the cloud: the interface, gRPC, and what to do when it breaks.

`link` is what the session needs of a transport, `grpc_link` the real one, `backoff` how long to wait between tries.
"""
