"""The command line: it parses arguments, calls the layer below and prints. It decides nothing."""

from rlaif.cli.app import main

__all__ = ["main"]
