"""The embedding model: its weights, its file, and the embedding of images with it.

Knows torch, backbones and checkpoints. Does not know how a model is trained, or what its embeddings are used for.
"""
