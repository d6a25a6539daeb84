"""The sampling rule: one choice per position, from logits and noise that is keyed by seed and position.

`rule` is the rule in numpy (the edge), `rule_torch` the same in torch (the cloud's reference); `philox` and
`philox_torch` are its noise. Torch is imported by the torch modules alone.
"""

from outrider_shared.sampling.params import SamplingParams

__all__ = ["SamplingParams"]
