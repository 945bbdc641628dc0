"""Templates: Jinja files that may come from a stranger, rendered without leaving their box and within bounds.

A template gets text, numbers, lists and mappings, and no other objects. One that only writes out what it is given is
rendered in this process, since reading it shows what it can cost (`bounds`). Every other template is rendered in a
process of its own (`apart`, `worker`), which ends when it takes too long, too much memory or writes too much.
"""

from rlaif.templates.chat import ChatTemplate, Conversation
from rlaif.templates.failures import TemplateFailure
from rlaif.templates.template import Template

__all__ = ["ChatTemplate", "Conversation", "Template", "TemplateFailure"]
