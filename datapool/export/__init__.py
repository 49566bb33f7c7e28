"""Hand the images of a pool over to the tools that label them, train on them or show them; split them for training.

Knows pools and the files of other tools. Changes no pool: it reads a version, finds the image files, and writes a folder or
a file of its own.
"""
