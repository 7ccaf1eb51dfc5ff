"""Everything that is read back is damaged: a reader takes a mutated document, or refuses it by one of our own errors, in one line.

The readers, a document for each and the mutations are those of the tests (`tests/documents.py`).
"""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Iterator

from faults_lab import Lab, Trial
from faults_processes import NotRunError


def mutate(lab: Lab, count: int, seed: int) -> Iterator[Trial]:
    """Feed `count` mutated documents to all readers in turn."""
    try:
        tested = importlib.import_module("tests.documents")
    except ModuleNotFoundError as error:
        raise NotRunError(f'it takes what the tests take ({error.name}); install ".[test]"') from None
    prepared = []
    for number, reader in enumerate(tested.READERS):
        place = lab.folder / f"reader-{number}"
        place.mkdir()
        reader.write(place)
        prepared.append((reader, place, tested.mutations((place / reader.file).read_bytes(), seed + number)))
    for reader, place, documents in itertools.islice(itertools.cycle(prepared), count):
        start, document = time.monotonic(), next(documents)
        (place / reader.file).write_bytes(document)
        said = tested.complaint(reader, place)
        problem = f"{said}, of {document[:200]!r}" if said else ""
        yield Trial(reader.name, "read, or refused in one line", problem, time.monotonic() - start)
