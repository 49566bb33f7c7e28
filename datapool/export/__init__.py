"""Hand the images of a pool over to tools that label them, train on them or show them; take labels back; split for training.

Knows pools and the files of other tools. Changes no pool: it reads a version, finds the image files, and writes a folder or
a file of its own.
"""
