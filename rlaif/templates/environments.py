"""The Jinja environments: of judge prompts, and of chat templates as far as reading them goes.

Both are sandboxed: attributes that begin with an underscore are unreachable, and nothing that is given can be changed.
"""

from __future__ import annotations

from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlaif.records import oneline
from rlaif.templates.failures import MOST_SOURCE, TemplateFailure, failure

prompting = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined,
    trim_blocks=False,
    lstrip_blocks=False,
    keep_trailing_newline=False,
    autoescape=False,
)
prompting.filters["oneline"] = oneline


class _Generation(Extension):
    """The passages that a chat template marks as the assistant's, parsed as transformers does."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


# transformers renders chat templates; this environment only parses them, by the same rules.
chatting = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])

_OTHER_FILES: Any = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


def parsed(environment: jinja2.Environment, source: str) -> nodes.Template:
    """The template, not optimised. Raises TemplateSyntaxError or TemplateFailure."""
    if len(source) > MOST_SOURCE:
        raise TemplateFailure(f"it is longer than {MOST_SOURCE:,} characters", exceeded=True)
    try:
        template = environment.parse(source)
        other = template.find(_OTHER_FILES)
    except jinja2.TemplateSyntaxError:
        raise
    except Exception as error:  # a SyntaxError of Python's own, too many digits, too deeply nested
        raise failure(error) from None
    if other is not None:
        raise TemplateFailure("it takes in another file, and a template is read alone", line=other.lineno)
    return template
