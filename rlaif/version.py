"""The version of this package, from its installed metadata."""

from importlib.metadata import version

__version__ = version("rlaif")
