"""What every stage shares: files on disk, tables, params.yaml, the base of a batch and the lineage.

Knows file formats and the keys of params.yaml. Does not know how images are decoded, embedded or chosen, nor how a pool is
changed. A module belongs here only if packages that do not import each other both need it.
"""
