"""The operator's REST API, the live page, and the metrics of the fleet service.

`app` puts it together, `guard` says who asks and how errors look, one module per noun: `fleet` (devices, groups,
configuration, commands), `rollouts`, `admin` (tokens, audit log, webhooks), `live` (events for the page), `metrics`.
"""
