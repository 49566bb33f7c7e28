"""The folder in which the pipeline runs: create and update it, run ``dvc repro`` in it, and the demo.

Knows git, DVC and params.yaml. Does not know what the stages compute.
"""
