"""From a constitution, a rubric or a judge to preference data that can be trusted, and from the data to a better model.

Importing the package loads no model library; those are loaded where a model is used.
"""

from importlib.metadata import version

__version__ = version("rlaif")

__all__ = ["__version__"]
