"""Structured answers: grammars compiled off the engine's path, and the state that masks each row of a step.

The library (llguidance) is known here alone. The engine sees `matcher.Matcher`.
"""
