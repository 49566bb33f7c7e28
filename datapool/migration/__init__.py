"""Bring pools together, and into another embedding space: ``datapool combine`` and ``datapool migrate``.

Knows pools, the selection and the models, and git and DVC where a pool is taken from another commit. Knows no terminal.
"""
