"""One session on the device, riding ahead of the cloud.

`state` is what the session knows, `policy` how far it drafts, `calibration` how much a
draft is trusted, `plan` decides what to do next (pure), `loop` does it,
`generate` wraps it with connecting, resuming and giving up. `events` is what the caller sees.
"""
