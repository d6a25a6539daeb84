"""Drafting on the device: the draft model's runtime, and the drafters that propose tokens with it."""
