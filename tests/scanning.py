"""Scan a folder with the settings that most tests have in common."""

from pathlib import Path

from conftest import MAX_PIXELS

from datapool.images.batch import Batch, scan


def look(folder: Path, **options: object) -> Batch:
    """Return what ``scan`` finds, with other settings where ``options`` has them."""
    settings = {
        "filename_prefix": "",
        "relevant": None,
        "check": "strict",
        "max_pixels": MAX_PIXELS,
        "remove_duplicates": True,
        "gif": False,
        "progress": lambda done, of: None,
    }
    return scan(folder, **settings | options)
