"""Find and check the samples of a shard of Mosaic's streaming library (MDS, version 2) by reading its tables once.

A shard is, in little-endian: the number of samples N (uint32), N + 1 places of samples (uint32), JSON that names the columns, and
the samples: each the sizes (uint32) of its columns that vary, and the columns. So it needs no other file to be read.

Source: `MDSWriter.encode_joint_shard` and `MDSReader.decode_sample` of mosaicml/streaming.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.decoding import printable
from convnext_deploy.data.shard_parts import SAMPLE, Part
from convnext_deploy.data.shard_scan import Shard, UnusableError, check_image
from convnext_deploy.documents import parse_json
from convnext_deploy.errors import DataError, RemoteError
from convnext_deploy.metrics.multi_label import UNKNOWN

_SUFFIXES = {"jpeg": "jpg", "png": "png", "bytes": "img"}  # of images as they are encoded in files
_INTEGERS = {
    "int": "<i8",
    **{f"{sign}int{bits}": f"<{sign or 'i'}{bits // 8}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_TEXT = "str_int"  # an integer in digits
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "x")  # names of columns, where there are several of a kind
_LABELS = ("label", "labels", "cls", "class", "target", "y")
_LARGEST_TABLE = 1 << 20  # bytes of the JSON
_DIGITS = 9


@dataclass(frozen=True)
class _Columns:
    """The names, encodings and sizes of columns, 0 where they vary; which hold the image and the label."""

    names: Sequence[str]
    encodings: Sequence[str]
    sizes: Sequence[int]
    image: int
    label: int | None


def scan_mds(shard: Shard, seen: Callable[[int], None], *, labelled: bool = True) -> Part:
    """Read the tables of a shard and check every sample. To be called within `quiet`; args as `scan_shard`.

    Raises: DataError: if it is no such shard, is cut, or has no column of images, or of class indices.
    """
    rows, names, defects, start = [], [], [], 0
    try:
        with shard.open() as stream:
            places, columns = _read_tables(stream, shard.size, labelled=labelled)
            for number, (begin, end) in enumerate(zip(places[:-1].tolist(), places[1:].tolist(), strict=True)):
                seen(end - begin)
                name = f"{number:08}.{_SUFFIXES[columns.encodings[columns.image].partition(':')[0]]}"
                try:
                    found = _divide(stream, begin, end, columns)
                    label = UNKNOWN if columns.label is None else _read_label(stream, found[columns.label], columns)
                    tail = check_image(stream, *found[columns.image])
                except UnusableError as error:
                    defects.append((name, str(error)))
                    continue
                names.append(name.encode())
                rows.append((0, label, *found[columns.image], tail, start, len(names[-1])))
                start += len(names[-1])
    except RemoteError:
        raise
    except DataError as error:
        raise DataError(f"{printable(shard.path)} {printable(error)}.") from None
    except OSError as error:
        raise DataError(f"{printable(shard.path)} cannot be read ({error.strerror}).") from None
    return Part(np.array(rows, SAMPLE), b"".join(names), tuple(defects))


def _read_tables(stream: BinaryIO, size: int, *, labelled: bool) -> tuple[NDArray[np.int64], _Columns]:
    (count,) = struct.unpack("<I", stream.read(4).ljust(4, b"\0"))
    head = 4 + 4 * (count + 1)
    if not count or head > size:
        raise DataError(
            "has no samples; remove it, or make it again" if size and not count else "is no shard in the format MDS"
        )
    places = np.frombuffer(stream.read(head - 4), "<u4").astype(np.int64)
    if len(places) != count + 1 or (np.diff(places) < 0).any() or not head < places[0] <= head + _LARGEST_TABLE:
        raise DataError("is no shard in the format MDS, or was damaged; copy or make it again")
    if places[-1] > size:
        raise DataError(
            f"is cut: it has {size:,} bytes, and its last sample ends at {int(places[-1]):,}; copy it again"
        )
    try:
        described = parse_json(stream.read(int(places[0]) - head).decode())
        columns = [described[f"column_{each}"] for each in ("names", "encodings", "sizes")]
        is_read = described["version"] == 2 and described["format"] == "mds" and len(set(map(len, columns))) == 1
    except (ValueError, LookupError, TypeError):
        is_read = False
    if not is_read:
        raise DataError("is no shard in version 2 of the format MDS; write it with a newer release of streaming")
    return places, _find_columns(*columns, labelled=labelled)


def _find_columns(names: Any, encodings: Any, sizes: Any, *, labelled: bool) -> _Columns:
    kinds = [str(encoding).partition(":")[0] for encoding in encodings]
    image = _choose(names, [place for place, kind in enumerate(kinds) if kind in _SUFFIXES], _IMAGES)
    label = _choose(names, [place for place, kind in enumerate(kinds) if kind in (*_INTEGERS, _TEXT)], _LABELS)
    missing = [
        what
        for what, place in (("images (jpeg, png or bytes)", image), ("class numbers (int)", label if labelled else 0))
        if place is None
    ]
    if missing or image is None:
        shown = ", ".join(f"{name} ({encoding})" for name, encoding in zip(names, encodings, strict=True))
        raise DataError(f"has the columns {shown}; expected one of {' and one of '.join(missing)}")
    return _Columns(names, kinds, [int(size or 0) for size in sizes], image, label if labelled else None)


def _choose(names: Sequence[str], places: Sequence[int], usual: Sequence[str]) -> int | None:
    """Return the only one of some columns, or the one with a usual name; None: there is none, or which it is cannot be told."""
    named: Mapping[str, int] = {str(names[place]).lower(): place for place in places}
    found = [named[name] for name in usual if name in named]
    return places[0] if len(places) == 1 else found[0] if found else None


def _divide(stream: BinaryIO, begin: int, end: int, columns: _Columns) -> list[tuple[int, int]]:
    """Return where each column of a sample lies, and its size. Raises: UnusableError: if it does not fit the sample."""
    stream.seek(begin)
    varying = columns.sizes.count(0)
    head = stream.read(4 * varying)
    sizes = iter(struct.unpack(f"<{varying}I", head.ljust(4 * varying, b"\0")))
    place, found = begin + 4 * varying, []
    for size in columns.sizes:
        own = size or next(sizes)
        found.append((place, own))
        place += own
    if place != end:
        raise UnusableError("is damaged: its columns do not fill it")
    return found


def _read_label(stream: BinaryIO, place: tuple[int, int], columns: _Columns) -> int:
    assert columns.label is not None
    kind = columns.encodings[columns.label]
    stream.seek(place[0])
    content = stream.read(min(place[1], 2 * _DIGITS))
    if kind == _TEXT:
        label = int(content) if content.isdigit() and len(content) <= _DIGITS else -1
    else:
        label = int(np.frombuffer(content, _INTEGERS[kind])[0])
    if not 0 <= label < 10**_DIGITS:
        raise UnusableError(f"has no class index as '{columns.names[columns.label]}', but {content[:20]!r}")
    return label
