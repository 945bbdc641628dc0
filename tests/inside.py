"""The command line in this process, in any folder: for fixtures of a whole module, which have no `capsys`."""

from __future__ import annotations

import io
import os
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from rlaif import cli


class Done(NamedTuple):
    code: int
    out: str
    err: str


def rlaif(folder: Path, *arguments: str) -> Done:
    """What `rlaif` with these arguments, run in `folder`, exits with and prints."""
    out, err = io.StringIO(), io.StringIO()
    command_line, wide = patch.object(sys, "argv", ["rlaif", *arguments]), patch.dict(os.environ, COLUMNS="160")
    with chdir(folder), command_line, wide, redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        else:
            code = 0
    return Done(code, out.getvalue(), err.getvalue())
