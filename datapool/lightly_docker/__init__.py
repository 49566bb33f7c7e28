"""What users of Lightly's Docker know: its command line, its folders, and the pools that it made.

Knows Lightly's keys and files, and translates them. No stage imports it.
"""
