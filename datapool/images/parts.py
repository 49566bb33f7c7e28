"""Images that are parts of a file: of a video or a shard."""

from dataclasses import dataclass

from datapool.images.objects import Folder


@dataclass(frozen=True)
class Part:
    """The place of an image that is a part of a file. Its text is the path of the image."""

    file: Folder
    """The video or the shard."""
    path: Folder
    """Of the image, for messages: in a shard, the path of the shard and the name in it."""

    def __str__(self) -> str:
        return str(self.path)
