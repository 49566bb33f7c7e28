"""Image files: which ones form a batch, and how each is decoded.

Knows file names, bytes and pixels, and where DVC keeps files. Does not know embeddings, models, choices or pools.
"""
