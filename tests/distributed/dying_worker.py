"""A process of two, of which the second is killed while both do their part of what the first one shares out."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from convnext_deploy.errors import DataError, DeployError
from convnext_deploy.system.distributed import world
from convnext_deploy.system.shared_work import from_first, share_out


@dataclass(frozen=True)
class Ending:
    """Pieces of which that with the number 3, which is the second process's, is not done: `how` says why."""

    how: str

    def __call__(self, numbers: range) -> Iterator[int]:
        for number in numbers:
            if number == 3 and self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 3:
                raise DataError("image 3 cannot be read")
            yield number


def main() -> None:
    """Print the one line with which this process ends."""
    try:
        from_first(lambda: list(share_out(Ending(sys.argv[1]), range(100), at_once=2)))
    except DeployError as error:
        print(f"{world().rank}: {error}", flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()
