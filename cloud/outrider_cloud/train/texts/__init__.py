"""Texts to learn from: what they are, where they come from, how they lie on disk and become batches."""
