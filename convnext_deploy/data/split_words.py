"""What the splits of data are called: by folders, in lists, and in columns of files of labels."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from convnext_deploy.errors import DataError, printable

VALIDATION_FOLDERS = ("val", "validation", "valid")
TEST_FOLDER = "test"  # for validation where there is nothing else
ROLES = {"train": "train", "training": "train", TEST_FOLDER: "test", "testing": "test"} | dict.fromkeys(
    (*VALIDATION_FOLDERS, "dev"), "validation"
)
"""What a split is called → which it is. Folders of classes are read by fewer of these words, and the others refused."""
SPLIT_NAMES = {*ROLES, "eval", "evaluation", "holdout"}
"""Also those that are not read, but must not be taken for classes, joined with the training images or passed over either."""
COLUMNS = ("split", "subset", "set", "partition", "fold", "dataset")
"""Names of columns that tell the split; none of them is a label. See `plain`."""
_SURE = ("split", "subset", "partition")  # they tell nothing else
_FLAG = re.compile(rf"is_({'|'.join(sorted(SPLIT_NAMES))})")
_YES, _NO = {"1", "true", "t", "yes", "y"}, {"0", "false", "f", "no", "n", "", "nan", "none"}


def plain(name: str) -> str:
    """Return the name of a column without regard to case, spaces and dashes."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def without_point(cell: str) -> str:
    """Return a cell in small letters, and 1.0 as 1."""
    return re.sub(r"\.0*$", "", cell.strip().lower())


def tells_split(name: str) -> bool:
    """Whether a column is about splits by its name, and so no label whatever stands in it."""
    return plain(name) in COLUMNS or _FLAG.fullmatch(plain(name)) is not None


def split_column(columns: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...] | None, list[str]]:
    """Return what the split of each row is called, None where no column tells it, and the columns that told it.

    A column of one of the usual names counts where a value of it is known, so that another is found wrong by `roles_of` instead
    of being passed over; otherwise flags such as `is_valid` or `train`, of 0 and 1.

    Raises: ValueError: if flags contradict.
    """
    for name in (name for name in columns if plain(name) in COLUMNS):
        words = [cell.strip().lower() for cell in columns[name]]
        if plain(name) in _SURE or not SPLIT_NAMES.isdisjoint(words):
            return tuple(words), [name]
    flags = _flags(columns)
    return (_of_flags(columns, flags) if flags else None), [*flags]


def roles_of(words: Sequence[str | None], names: Sequence[str], path: Path) -> tuple[str | None, ...]:
    """Return which split each row of a file is of. Raises: DataError: if a word is not known."""
    unknown = Counter(word for word in words if word is not None and word not in ROLES)
    if unknown:
        word, count = unknown.most_common(1)[0]
        called = f"'{printable(word)}'" if word else "blank"
        first = printable(names[words.index(word)])
        raise DataError(
            f"the split of {count:,} images in {printable(path)} is {called} (first: {first}), which is not known; "
            f"expected {', '.join(ROLES)}. Write val for images that validate, or rename the column if it tells no "
            "split."
        )
    return tuple(None if word is None else ROLES[word] for word in words)


def role_of_folder(name: str, root: Path) -> str | None:
    """Return the split of images in a folder called `train`, `val2017` and the like; None: it is none.

    Raises: DataError: if it is one that is not read, whose images would join those to train on.
    """
    word = name.lower().rstrip("0123456789")
    if word in SPLIT_NAMES and word not in ROLES:
        raise DataError(
            f"the data folder {printable(root)} has {printable(name)}/, which is not known as a split; expected train/, val/ and "
            f"test/. Rename {printable(name)}/ to val/, or move it away."
        )
    return ROLES.get(word)


def _flags(columns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the columns of 0 and 1 that each say of one split which images it has, with that.

    `is_…` does; of bare words `train` alone does not, which is a thing that images show, and none does that would leave no label.
    """
    found = {name: match[1] for name in columns if (match := _FLAG.fullmatch(plain(name)))}
    bare = {name: plain(name) for name, cells in columns.items() if plain(name) in SPLIT_NAMES and _is_flag(cells)}
    labels = any(not tells_split(name) and name not in bare for name in columns)
    return found | (bare if labels and (found or set(bare.values()) != {"train"}) else {})


def _is_flag(cells: Sequence[str]) -> bool:
    return {without_point(cell) for cell in cells} <= _YES | _NO


def _of_flags(columns: Mapping[str, Sequence[str]], flags: Mapping[str, str]) -> tuple[str, ...]:
    """Return the word of the flag that is set in each row; where none is, the first split that has no flag."""
    named = " and ".join(flags)
    rest = next((role for role in ("train", "validation", "test") if role not in map(ROLES.get, flags.values())), None)
    words = []
    for number, row in enumerate(zip(*(columns[name] for name in flags), strict=True), 1):
        cells = [without_point(cell) for cell in row]
        if odd := [cell for cell in cells if cell not in _YES | _NO]:
            raise ValueError(
                f"image {number} has '{odd[0]}' under {named}, where 1 or 0 tells whether it is of that split"
            )
        chosen = [word for word, cell in zip(flags.values(), cells, strict=True) if cell in _YES]
        if len(chosen) > 1 or not (chosen or rest):
            raise ValueError(
                f"{'several' if chosen else 'none'} of {named} {'are' if chosen else 'is'} set for image {number}"
            )
        words.append(chosen[0] if chosen else str(rest))
    return tuple(words)
