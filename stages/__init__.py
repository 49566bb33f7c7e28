"""The stages of dvc.yaml, one thin program each: read, call the library with plain values, write."""
