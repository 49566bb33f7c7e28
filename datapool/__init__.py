"""datapool: pick the new images that add something, keep them in a growing, versioned pool."""

__version__ = "0.1.0"
