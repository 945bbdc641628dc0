"""The command line: it parses arguments, calls the layer below and prints. It decides nothing."""

from rlaif.cli.ending import ENDING, Ending, Handled, leave

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit. What it needs is loaded here, where signals are attended to already."""
    with Ending():
        with Handled(dict.fromkeys(ENDING, leave)):
            from rlaif.cli.app import main as run
        run()
