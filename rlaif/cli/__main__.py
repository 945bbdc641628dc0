"""`python -m rlaif.cli`."""

from rlaif.cli import main

main()
