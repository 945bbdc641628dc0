"""The commands by name, and how an error becomes a message and an exit code.

Exit codes: 0 done, 1 the work failed or is incomplete, 2 the input is wrong, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, NoReturn

import typer

from rlaif.cli import (
    batches,
    constitutions,
    judges,
    look,
    merging,
    projects,
    runs,
    settings,
    store,
    terminal,
    training,
)
from rlaif.cli.ending import too_little
from rlaif.cli.options import grouped
from rlaif.errors import INTERRUPTED, InputErrors, RlaifError
from rlaif.pipeline.loop import RareCollections
from rlaif.screen import guarded
from rlaif.version import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a constitution, rubric or judge to preference data, and from the data to a better model.\n\n"
    "Start with:  rlaif run pipelines/quickstart.yaml",
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        terminal.say(f"rlaif {__version__}")
        raise typer.Exit


# In the order in which `rlaif --help` lists them.
app.command()(projects.init)
app.command()(look.look)
app.command()(runs.plan)
app.command()(runs.run)
app.command()(batches.batch)
app.command()(grouped(judges.judge))
app.command()(grouped(judges.audit))
app.command(cls=settings.WithSettings)(grouped(training.train))
app.command()(merging.merge)
app.command("try")(projects.try_)
app.command()(runs.status)
app.command()(runs.show)
app.command()(runs.export)
app.add_typer(constitutions.app, name="constitution")
app.command()(store.cache)


def main() -> None:
    """Run the command line and exit. An error that a user can cause is one line, never a traceback."""
    _open_streams()
    with guarded():
        _main()


def _open_streams() -> None:
    """What the terminal cannot show is escaped. Without a standard output nothing is done whose result nobody sees."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - a file of the run must not take its number
        terminal.fail("the standard output is closed. Fix: send it to a file or to /dev/null", 1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _main() -> NoReturn:
    try:
        with RareCollections():  # from here on: a tenth of a short command's time goes to them during its imports
            code = app(standalone_mode=False)
    except InputErrors as error:
        for one in error.errors[:-1]:
            terminal.print_error(str(one))
        terminal.fail(str(error.errors[-1]), error.exit_code)
    except RlaifError as error:
        terminal.fail(str(error), error.exit_code)
    except typer.TyperException as error:  # the command line itself is wrong
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if not message:  # without a command, its help was printed
            sys.exit(2)
        terminal.fail(f"{message.rstrip('.')}. Fix: see `rlaif --help`", 2)
    except BrokenPipeError:  # the reader of the pipe has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder without permission to write
        if too_little(error) is not None:
            raise
        path = f": {error.filename}" if error.filename else ""
        terminal.fail(f"{error.strerror or error}{path}; finished work is kept", 1)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code
        terminal.fail(terminal.INTERRUPTION, INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)
