"""`outrider bench fleet`: what the plane carries on this machine, and what its gates find.

`gates` the statistics of canary against control, `registry` a registry of many devices behind the real API, `load` many
simulated devices on a real broker, `cli` the commands.
"""
