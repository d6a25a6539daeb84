"""A new draft, from a line in the desired state to a pack that has proven itself, or back to the one before.

`updater` conducts and `journal` remembers where it stands; `trust` says what may be installed, `http` and `download`
fetch it, `delta` makes it from what is here, `slots` keeps two packs, `selftest` tries the new one.
"""
