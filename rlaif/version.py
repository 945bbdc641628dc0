"""The version of this package, from its installed metadata, and what pip calls it."""

from importlib.metadata import version

DISTRIBUTION = "rlaif-kit"  # `rlaif` on the public index is somebody else's
__version__ = version(DISTRIBUTION)


def install(extra: str) -> str:
    """The command that adds what an extra of this package names, however the package itself was installed."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
