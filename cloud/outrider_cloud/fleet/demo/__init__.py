"""`outrider fleet demo`: a whole fleet on one machine, and two drafts for it, a good one and a bad one.

Every part is the product's own command in a process of its own: broker, service, cloud, one endpoint with an agent in
it, and simulated devices around it. `processes` runs them, `packs` makes the drafts, `asker` keeps the endpoint busy,
`story` says what happens in which order and what has to come of it, `cli` is the command.
"""
