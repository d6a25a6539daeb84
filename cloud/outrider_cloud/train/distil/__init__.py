"""A draft that learns to choose what its target chooses."""
