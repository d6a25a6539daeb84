"""What the engine computes besides the model itself: one interface per kernel, and its implementations.

`platform` lists the interfaces and binds one implementation of each for a device. The torch references run anywhere;
the CPU is served by them. `cuda` has the kernels of NVIDIA GPUs. No other package knows how KV memory is laid out.
"""
