"""The page that shows what a run did, and the same facts for machines.

Knows the results of the stages and what exclude.txt looks like. Computes nothing that another stage needs.
"""
