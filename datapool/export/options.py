"""What an export may be: its formats, and how image files get into it.

The command line imports this for its help, so it imports nothing that takes time.
"""

from enum import StrEnum


class Format(StrEnum):
    """What an export is written for."""

    FILES = "files"
    WEBDATASET = "webdataset"
    CSV = "csv"
    PARQUET = "parquet"
    COCO = "coco"
    YOLO = "yolo"
    LABEL_STUDIO = "label-studio"
    CVAT = "cvat"
    FIFTYONE = "fiftyone"
    LIGHTLY_STUDIO = "lightly-studio"


class Placement(StrEnum):
    """How image files get into an export."""

    COPY = "copy"
    HARDLINK = "hardlink"
    SYMLINK = "symlink"
    NONE = "none"


class Source(StrEnum):
    """What wrote a file of labels."""

    LABEL_STUDIO = "label-studio"
    CVAT = "cvat"
    COCO = "coco"
    CSV = "csv"
