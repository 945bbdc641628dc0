"""`rlaif cache`: the calls that are stored, and what trainings keep."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from rlaif.cli import results, terminal
from rlaif.cli.options import AsJson


def cache(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="show, verify, prune or clear.")] = "show",
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", help="prune: remove calls older than this.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="NAME", help="prune: remove calls that this run paid for.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the cached calls, verify that all of them can be read, or prune some.

    `clear` removes no call: it removes the token ids and log-probabilities that trainings keep to compute them once.
    """
    from rlaif.pipeline import upkeep
    from rlaif.pipeline.folder import STORE

    upkeep.check_action(action, older_than, run)
    if action == "clear":
        terminal.say(f"{upkeep.clear() / 2**20:.1f} MB of trainings removed; all calls are kept")
        return
    with closing(upkeep.open_store(action)) as store:
        if action == "prune":
            removed = upkeep.prune(store, older_than, run)
            terminal.say(f"{removed:,} calls removed, {len(store):,} left")
        elif action == "verify":
            upkeep.verify(store)
            terminal.say(f"{len(store):,} calls, all of them can be read")
        elif as_json:
            terminal.print_json([holding._asdict() for holding in store.holdings()])
        else:
            results.print_holdings(terminal.console(), store.holdings(), STORE)
            for folder, size in upkeep.kept_by_trainings().items():
                terminal.say(f"{size / 2**20:.1f} MB that trainings keep in {folder}; `rlaif cache clear` removes it")
