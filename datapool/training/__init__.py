"""Provide the model of a pool: its own, a given one, a pretrained one, or one trained on the first batch.

Knows lightly and Lightning. Does not know choices or how a pool is stored.
"""
