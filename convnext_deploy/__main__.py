"""`python -m convnext_deploy` is `convnext-deploy`."""

import contextlib
import os
import sys

from convnext_deploy.system.interruption import Interrupted, install


def main() -> None:
    """Run the command line, and answer signals from the first moment on until the process is gone."""
    interruption = install()
    try:
        from convnext_deploy.cli import main as run

        run()
    except Interrupted as error:  # while that was imported, or after it was done
        if interruption is not None:
            interruption.settle()
            if not interruption.told:
                interruption.told = True
                if os.environ.get("RANK", "0") == "0":
                    with contextlib.suppress(OSError):
                        os.write(2, b"interrupted\n")
        sys.exit(error.code)


if __name__ == "__main__":
    main()
