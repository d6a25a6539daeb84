"""The gRPC service around the engine.

`server` is the process: sockets, TLS, health, reflection, drain. `handler` is one session's stream, without gRPC in it.
`opening` checks what a device asks for, `outbox` merges what the engine says into messages, `directory` knows who is
connected.
"""
