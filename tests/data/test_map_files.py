"""Files that are read one after another or by several threads, whichever is faster."""

import threading
import time

import pytest

from convnext_deploy.data.decoding import map_files
from convnext_deploy.errors import DataError


@pytest.mark.parametrize(("seconds", "threads"), [(0.0, False), (0.002, True)], ids=["at once", "waiting"])
def test_threads_are_for_what_waits(seconds: float, threads: bool) -> None:
    seen: list[int] = []

    def read(number: int) -> int:
        if seconds:
            time.sleep(seconds)
        seen.append(threading.get_ident())
        return -number

    assert map_files(read, range(1500), 32) == [-number for number in range(1500)]
    assert (threading.get_ident() not in seen[-500:]) is threads


@pytest.mark.parametrize("count", [0, 1, 2, 64, 65, 66, 600])
def test_any_number_of_files_is_read_once_and_in_order(count: int) -> None:
    seen: list[int] = []

    def read(number: int) -> int:
        seen.append(number)
        return number

    assert map_files(read, range(count)) == list(range(count))
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize("bad", [0, 3, 100, 999])
def test_the_first_error_ends_it(bad: int) -> None:
    def read(number: int) -> int:
        if number == bad:
            raise DataError(f"{number} cannot be read")
        return number

    with pytest.raises(DataError, match=rf"^{bad} cannot be read$"):
        map_files(read, range(1000))
