"""Say of a folder without a usable image, and of files beside images, what they are and what can be done."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from convnext_deploy.data.pixels import IMAGE_EXTENSIONS
from convnext_deploy.errors import printable

_HEIC = "convert them with 'heif-convert IN.heic OUT.jpg', or let the phone send JPEG"
_ADVICE = {
    ".heic": _HEIC,
    ".heif": _HEIC,
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw"), "develop these raw photographs into JPEG or PNG"),
    **dict.fromkeys(
        (".mp4", ".avi", ".mov", ".mkv"), "take frames from these videos, as 'ffmpeg -i IN.mp4 OUT_%05d.jpg' does"
    ),
    ".npy": "write these arrays as PNG",
    ".zip": "unpack it",
}


def describe_useless(folder: Path, paths: list[Path], kind: str = "class folder") -> str:
    """Say what a folder of that kind has in the place of images, and what to do."""
    endings = sorted({path.suffix.lower() or "no ending" for path in paths})
    some = ", ".join(map(printable, endings[:4]))
    advice = next(
        (advice for ending, advice in _ADVICE.items() if ending in endings), "convert them, or move the folder away"
    )
    return (
        f"the {kind} {printable(folder)} has no image that can be read: {len(paths)} files ({some}), such as "
        f"{printable(min(paths).name)}; {advice}. Images end in {', '.join(IMAGE_EXTENSIONS)}."
    )


def advise(paths: Iterable[Path]) -> Iterator[str]:
    """Yield what can be done about files beside images that hold some as well, a line for each ending."""
    counts = Counter(path.suffix.lower() for path in paths if not path.name.startswith("."))
    for ending, count in sorted(counts.items()):
        if ending in _ADVICE:
            yield f"{count:,} files that end in {ending} are not read: {_ADVICE[ending]}"
