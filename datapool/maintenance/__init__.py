"""Check pools and repair them, outside of the pipeline: ``datapool verify`` and ``datapool repair``.

Knows pools and their lineage. Shares no code with the selection that it checks.
"""
