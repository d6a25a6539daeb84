"""The cloud side of Outrider: the engine that runs the full model, and the service that devices talk to."""
