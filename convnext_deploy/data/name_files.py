"""Files of names that people write, text or JSON: read with a limit, and refused in one line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from convnext_deploy.data.decoding import printable
from convnext_deploy.documents import parse_json, read_text, reason
from convnext_deploy.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class NameFile(Generic[T]):
    """What such a file is for.

    Attributes:
        parse_text: of what is no `.json`.
        parse_json: of the value in a `.json`. Both raise ValueError or TypeError for what they cannot take.
        subject: the same as the subject of a sentence.
        wrong: what a file of something else does or is, such as `does not name classes`.
        expected: what should be in it.
        largest: bytes.
    """

    parse_text: Callable[[str], T]
    parse_json: Callable[[Any], T]
    subject: str
    wrong: str
    expected: str
    largest: int

    def read(self, path: Path) -> T:
        """Read a file. Raises: DataError: if it is too large, cannot be read, or holds something else."""
        try:
            text = read_text(path, self.largest)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.subject} in {printable(path)} cannot be read ({reason(error)}).") from None
        try:
            return self.parse_json(parse_json(text)) if path.suffix.lower() == ".json" else self.parse_text(text)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{printable(path)} {self.wrong} ({printable(str(error))}); expected {self.expected}."
            ) from None
