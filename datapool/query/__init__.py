"""Answer questions about pools: how they stand and grew, what differs between two states, why an image is in or not.

Knows what git and DVC keep of earlier states, and reads it without a checkout. Runs no stage and changes nothing.
"""
