"""The training loop: steps, processes, optimizers, checkpoints."""
