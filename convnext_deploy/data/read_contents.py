"""Read what the files of a data set hold before anything asks for its fingerprint, and say how far that is."""

from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.data.shards import ShardImages
from convnext_deploy.system.progress import Progress


def read_contents(data: Data, progress: Progress) -> None:
    """Have `data.contents` know every file of the images for training and validation. Raises: DataError: if one cannot be read."""
    for images in (data.train, data.validation):
        if isinstance(images, FolderImages):
            data.contents.read(images.paths, progress)
        elif isinstance(images, ShardImages):
            images.index.digests(data.contents, progress)
