"""The engine: `schedule -> run -> commit` over many sessions at once.

`engine` conducts. `schedule` decides which rows run, `blocks` owns the KV memory, `session` is one log with its draft
tree, `batch` lays rows out for the model, `runner` calls it, `exactness` checks that its
rows are independent, `accept` walks the trees, `events` is what comes out,
`thread` runs it all beside an event loop.
"""
