"""One model over several processes: tensor parallelism with sums in a fixed order.

`plan` reads what the model publishes, `shards` cuts it, `layers` computes, `world` is the processes, `messages` and
`peers` keep the others in step with rank 0, `watch` notices a rank that dies, `team` puts it together.
"""
