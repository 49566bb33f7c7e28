"""datapool: pick the new images that are worth labeling, and keep them in a growing, versioned pool."""

__version__ = "0.1.0"
