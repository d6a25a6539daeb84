"""Roll-outs: stages, dispatch, gates, and when to go back.

Everything here is pure: `decide` says what to do next from what is known, the controller does it.

`states` the states and who may follow whom, `spec` what an operator asks for, `sequential` the test that may be looked
at all the time, `evidence` from telemetry to that test, `gates` when a stage is bad, `decide` the next actions.
"""
