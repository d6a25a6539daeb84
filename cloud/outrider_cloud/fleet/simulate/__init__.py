"""Many devices in one process, with real connections and certificates and modelled work.

`behaviour` is the model, `device` one client, `run` all of them.
"""
