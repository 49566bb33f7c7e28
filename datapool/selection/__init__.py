"""Which candidates to pick: the ranking, the rules, the cut at a stopping condition, and how good the choice is.

Knows embeddings and distances. Does not know models, or how a pool is stored.
"""
