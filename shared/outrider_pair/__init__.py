"""Both sides in one process: what a draft is worth to a target, with the real engine and the real drafter.

The only package that imports cloud and edge; neither imports it.
"""
