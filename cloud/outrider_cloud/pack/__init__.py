"""Packing a draft: a Hugging Face folder in, a checked pack for the edge out."""
