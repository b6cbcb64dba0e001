"""Bases: `formats` reads weights, `base` describes, `tokenizer` and `chat` speak, `load` makes torch models of them.

Everything but `load` is torch-free.
"""
