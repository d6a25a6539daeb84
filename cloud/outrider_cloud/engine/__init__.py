"""The engine: `schedule -> run -> commit` over many sessions at once.

`engine` conducts. `schedule` decides which rows run, `memory` who gets KV when it is short (`blocks` are its unit),
`session` is one log with its draft tree, `batch` lays rows out for the model, `runner` calls it, `accept` walks the
trees. `checks` refuses what cannot run, `exactness` verifies that rows are independent before they are promised to be,
`events` is what goes in and out, `thread` runs it all beside an event loop.
"""
