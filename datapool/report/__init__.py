"""The page that shows what a run did.

Knows the results of the stages. Computes nothing that another stage needs.
"""
