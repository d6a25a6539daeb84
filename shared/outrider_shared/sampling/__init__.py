"""The sampling rule: one choice per position, from logits and noise that is keyed by seed and position.

`rule` is the rule in numpy (the edge, and the cloud on a CPU) with `noise` from the bits of `philox`; `rule_torch` and
`philox_torch` are the same in torch, the reference of the GPU kernels. Torch is imported by the torch modules alone.
"""

from outrider_shared.sampling.params import SamplingParams

__all__ = ["SamplingParams"]
