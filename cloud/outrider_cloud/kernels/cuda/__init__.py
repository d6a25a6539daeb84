"""The kernels of NVIDIA GPUs: CUDA text, what compiles and launches it, and wrappers beside the torch references.

Each `.cu` file is compiled per variant (head size, 16-bit type) and knows neither torch nor the CUDA headers. `source`
reads a variant's text; `launch` is the interface that the wrappers call, with two implementations: `gpu` (CuPy's
NVRTC, on torch's current stream) and `host` (g++, on the CPU, a fiber for each thread), so the same text and the same
wrappers run in tests without a GPU. `gate` compiles every variant for a GPU that need not be there and reads registers
and spills. `metadata` is what a step tells attention.
`attention`, `sampling`, `layers`, `kv` and `accept` are the wrappers; their references are `outrider_cloud.kernels`.
"""
