"""Drafts made in the cloud, for sessions whose edge has sent none: one more source of tree nodes.

`lookup` finds what followed the same words before, `model` asks a draft model beside the target, `fill` decides who is
drafted for and how far. By invariance no text depends on it.
"""
