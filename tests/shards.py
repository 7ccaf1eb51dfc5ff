"""Tar shards for tests: from an image folder by the lines of recipes/how-to/images.md, or from any files."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from convnext_deploy.data.datasets import FolderImages, ImageSet
from convnext_deploy.data.shards import ShardImages

# As on that page.
MAKE_SHARDS = """
from pathlib import Path
import webdataset

images, shards = Path("photos"), Path("shards")
shards.mkdir()
classes = sorted(folder.name for folder in (images / "train").iterdir())
(shards / "classes.txt").write_text("\\n".join(classes))
for split in ("train", "val"):
    with webdataset.ShardWriter(f"{shards}/{split}-%06d.tar", maxsize=1e9) as writer:
        for path in sorted((images / split).rglob("*.*")):
            name = path.relative_to(images / split)
            key = name.with_suffix("").as_posix().replace(".", "_")  # webdataset takes all after a dot for the suffix
            label = classes.index(name.parts[0])
            writer.write({"__key__": key, path.suffix[1:].lower(): path.read_bytes(), "cls": label})
"""


def make_shards(images: Path, shards: Path, samples: int | None = None) -> Path:
    """Run these lines on other folders, with `samples` in a shard."""
    text = MAKE_SHARDS.replace('"photos"', repr(str(images))).replace('"shards"', repr(str(shards)))
    if not (images / "val").exists():
        text = text.replace('("train", "val")', '("train",)')
    exec(text.replace("maxsize=1e9", f"maxcount={samples}, verbose=0") if samples else text, {})
    return shards


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 255 - level)).save(buffer, "PNG")
    return buffer.getvalue()


def sample(number: int, label: int) -> list[tuple[str, bytes]]:
    return [(f"{number:03}.png", png(number)), (f"{number:03}.cls", str(label).encode())]


def numbered(path: Path, numbers: Iterable[int], classes: int = 2) -> Path:
    return write_tar(path, [file for number in numbers for file in sample(number, number % classes)])


def places(images: ImageSet) -> set[str]:
    """Return the names of images in their folder or shard."""
    if isinstance(images, FolderImages):
        return {f"{path.parent.name}/{path.name}" for path in images.paths}
    assert isinstance(images, ShardImages)
    return {re.split(r"\.tar/", str(images.place(index)), flags=re.I)[1] for index in range(len(images))}
