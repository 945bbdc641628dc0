"""`python -m rlaif.cli`."""

from rlaif.cli.app import main

main()
