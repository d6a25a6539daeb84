"""The device's part of the fleet plane: `agent` conducts, everything else does one thing.

`config` who this device is, `host` what the agent needs of the program that drafts, `usage` what that program did,
`system` what the machine says, `disk` writing so that power may fail, `outbox` what must arrive, `update` a new draft.
"""
