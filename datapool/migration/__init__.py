"""Bring pools together: ``datapool combine``.

Knows pools and the selection, and git and DVC where a pool is taken from another commit. Knows no terminal.
"""
