"""The command line. Commands are imported when they are asked for, and import nothing heavy until they run."""

import io
import os
import signal
import sys
import time
from typing import Any

import click

from convnext_deploy.cli.console import UnreadError, abandon_output, prepare_streams
from convnext_deploy.cli.options import quiet_option
from convnext_deploy.cli.verbs import COMMANDS as COMMANDS
from convnext_deploy.cli.verbs import Group
from convnext_deploy.errors import DeployError, OutputError
from convnext_deploy.system.disk_faults import naming_disk_faults
from convnext_deploy.system.distributed import launched, leave_others
from convnext_deploy.system.interruption import Interrupted, Interruption, interruptible
from convnext_deploy.system.memory_faults import LESS_MEMORY, needing_memory
from convnext_deploy.system.standard_error import tell, tell_lines

_RUNS = ("run", "train", "distill", "quantize", "export")  # what goes on where it was interrupted
_JOINT = (*_RUNS, "validate")  # what several processes do together
_PATIENCE_S = 10.0
EXIT_ERROR, EXIT_GATE_FAILED, EXIT_UNREAD = 1, 3, 141


class _Group(Group):
    def invoke(self, ctx: click.Context) -> Any:
        # also what is imported for a command, and what it prints
        with needing_memory("this command", LESS_MEMORY), naming_disk_faults():
            return super().invoke(ctx)


@click.command(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="convnext_deploy")
@quiet_option
@click.pass_context
def group(context: click.Context) -> None:
    """Make a trained ConvNeXt small and fast, and prove on every step's own artifact that it still works.

    Exit codes: 0 all gates passed, 1 an error, 2 wrong usage, 3 a gate failed (the report is written), 130 and 143
    interrupted by Ctrl-C and by SIGTERM (the same command goes on).

    Words: recipes/how-to/glossary.md explains those of the output.
    """
    _check_working_folder()
    if context.invoked_subcommand not in _JOINT:
        if not launched().is_first:
            context.exit()
        leave_others()  # which have ended, and would be waited for


def _check_working_folder() -> None:
    """Look where this process works: where that folder is gone, libraries such as MKL end the process in words of their own.

    Raises: OutputError: if it was removed, or may not be read.
    """
    try:
        os.getcwd()  # noqa: PTH109  (Path.cwd is the same, and pathlib need not be imported for it)
    except OSError as error:
        raise OutputError(
            f"the folder that this command was started in cannot be found ({error.strerror}); it may have been removed: change "
            "into one that is there, such as with `cd`."
        ) from None


def main() -> None:
    """Run the command line; every error that a user can mend is one line on standard error, and so is a signal to end."""
    prepare_streams()
    with interruptible() as interruption:
        try:
            code = _run(interruption)
        except Interrupted as error:
            interruption.settle()
            _say_interrupted(error)
            interruption.told = True
            code = error.code
        sys.exit(code)


def _run(interruption: Interruption) -> int:
    """Return the exit code. Raises: Interrupted."""
    try:
        # without standalone mode click returns the code of `Exit` and does not raise it
        code = _until_interrupted(interruption)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show(shown := io.StringIO())
        tell_lines(shown.getvalue())
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except DeployError as error:
        _say_error(str(error))
    except UnreadError:
        abandon_output()  # as with `| head`: no error to tell of, and no whole result either
        return EXIT_UNREAD
    except OSError as error:
        abandon_output()
        where = f" ({error.filename})" if error.filename else ""
        _say_error(f"{error.strerror or error}{where}")
    except (KeyboardInterrupt, click.Abort):
        raise Interrupted(signal.SIGINT) from None
    return EXIT_ERROR


def _until_interrupted(interruption: Interruption) -> object:
    """Call the command. Raises: Interrupted: whatever a signal has become on its way here, and what it has made fail."""
    try:
        return group(standalone_mode=False)
    except Interrupted:
        raise
    except BaseException:
        if interruption.signum is not None:
            raise Interrupted(interruption.signum) from None
        raise


def _say_interrupted(error: Interrupted) -> None:
    """Print in one line that a signal ended the command, and what is kept."""
    if not launched().is_first:
        return
    name = "" if error.signum == signal.SIGINT else f" ({signal.Signals(error.signum).name})"
    if launched().size > 1 and error.signum == signal.SIGTERM:  # which torchrun also sends when one process has ended
        name += ", or another process ended: see what it said, and torchrun's summary"
    kept = "; the pages are served no more" if "view" in sys.argv[1:2] else ""
    if {*sys.argv} & {*_RUNS}:
        state = f"{error.saved} and" if error.saved else "the last saved state and"
        kept = f"; {state} finished stages are kept, the same command goes on from there"
    tell(f"interrupted{name}{kept}")


def _say_error(text: str) -> None:
    """Print an error. What all processes find wrong the first one says; it ends first, and torchrun then ends the others."""
    if launched().is_first:
        if launched().size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of an error and of being told to end, the error is said
        tell(f"error: {text}")
    else:
        time.sleep(_PATIENCE_S)
        tell(f"error (process {launched().rank}): {text}")
