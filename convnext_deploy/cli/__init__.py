"""The command line. Commands are imported when they are asked for, and import nothing heavy until they run."""

import importlib
import io
import os
import signal
import sys
import time
from typing import Any, NoReturn

import click

from convnext_deploy.cli.console import UnreadError, abandon_output, prepare_streams, tell, tell_lines
from convnext_deploy.cli.options import quiet_option
from convnext_deploy.errors import DeployError, OutputError
from convnext_deploy.system.disk_faults import naming_disk_faults
from convnext_deploy.system.distributed import launched
from convnext_deploy.system.memory_faults import LESS_MEMORY, needing_memory

COMMANDS = (
    "run", "train", "distill", "quantize", "export", "validate", "inspect", "bundle", "verify-bundle", "report", "compare",
    "bench", "convert", "models", "recommend", "predict", "doctor", "completion",
)  # fmt: skip
_JOINT = ("run", "train", "distill", "quantize", "export")  # what several processes do together
_PATIENCE_S = 10.0
EXIT_ERROR, EXIT_GATE_FAILED, EXIT_INTERRUPTED, EXIT_UNREAD = 1, 3, 130, 141


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"convnext_deploy.cli.{cmd_name.replace('-', '_')}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        # also what is imported for a command, and what it prints
        with needing_memory("this command", LESS_MEMORY), naming_disk_faults():
            return super().invoke(ctx)


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="convnext_deploy")
@quiet_option
@click.pass_context
def group(context: click.Context) -> None:
    """Make a trained ConvNeXt small and fast, and prove on every step's own artifact that it still works.

    Exit codes: 0 all gates passed, 1 an error, 2 wrong usage, 3 a gate failed (the report is written).

    Words: recipes/how-to/glossary.md explains those of the output.
    """
    _check_working_folder()
    if context.invoked_subcommand not in _JOINT and not launched().is_first:
        context.exit()


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
    """Run the command line; every error that a user can mend is one line on standard error."""
    prepare_streams()
    if launched().size > 1:
        signal.signal(signal.SIGTERM, _on_end)
    try:
        # without standalone mode click returns the code of `Exit` and does not raise it
        code = group(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show(shown := io.StringIO())
        tell_lines(shown.getvalue())
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except DeployError as error:
        _say_error(str(error))
        sys.exit(EXIT_ERROR)
    except UnreadError:
        abandon_output()  # as with `| head`: no error to tell of, and no whole result either
        sys.exit(EXIT_UNREAD)
    except OSError as error:
        abandon_output()
        where = f" ({error.filename})" if error.filename else ""
        _say_error(f"{error.strerror or error}{where}")
        sys.exit(EXIT_ERROR)
    except (KeyboardInterrupt, click.Abort):
        kept = "; finished stages are kept, the same command goes on from there" if {*sys.argv} & {*_JOINT} else ""
        tell(f"interrupted{kept}")
        sys.exit(EXIT_INTERRUPTED)


def _say_error(text: str) -> None:
    """Print an error. What all processes find wrong the first one says; it ends first, and torchrun then ends the others."""
    if launched().is_first:
        if launched().size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of an error and of being told to end, the error is said
        tell(f"error: {text}")
    else:
        time.sleep(_PATIENCE_S)
        tell(f"error (process {launched().rank}): {text}")


def _on_end(*_: object) -> NoReturn:
    """What `torchrun` does to the others when one process has ended."""
    if launched().is_first:
        # The signal may come while something else is printed, and a stream in Python does not take a second writer.
        os.write(
            2,
            b"error: another process ended (see what it said, and torchrun's summary), and this one was told to; the same command "
            b"goes on from the last saved state\n",
        )
    sys.exit(EXIT_ERROR)
