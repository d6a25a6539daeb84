"""Hugging Face models as the engine runs them: their code, our attention.

`loading` reads a folder, `gate` refuses what the attention interface cannot express, `probe` records each layer's
shape, `conformance` compares a small clone with eager, `attention` is the function that the model calls.
"""
