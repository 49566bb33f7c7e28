"""The pool on disk: open the base of a batch, merge the picks, and change the files together or not at all.

Knows the files of pools, the lineage and the transaction. Does not know images, models or distances.
"""
