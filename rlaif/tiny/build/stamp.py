"""The digest that a card gives of what made the weights."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

from rlaif.resources import find
from rlaif.tiny import world
from rlaif.tiny.build.recipes import CHAT_TEMPLATE, PRINCIPLE_TEMPLATES, RATE_TEMPLATE

WITHOUT_EFFECT = ("cards.py", "measuring.py", "stamp.py", "__init__.py")


def recipe_digest(scale: float, seed: int) -> str:
    """Digest of everything that decides the weights: code of the build and the world, templates, scale, seed.

    Imports, comments and docstrings are left out: to move a file or to say a sentence better changes no weight.
    """
    folder = Path(__file__).parent
    sources = [path for path in sorted(folder.glob("*.py")) if path.name not in WITHOUT_EFFECT]
    code = [_code(path.read_text(encoding="utf-8")) for path in (*sources, Path(str(world.__file__)))]
    templates = [
        find(path).read_text(encoding="utf-8") for path in (CHAT_TEMPLATE, RATE_TEMPLATE, *PRINCIPLE_TEMPLATES)
    ]
    return hashlib.sha256(json.dumps([scale, seed, *code, *templates]).encode()).hexdigest()[:32]


def _code(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.If):
            node.body = [part for part in node.body if not _without_effect(part)] or [ast.Pass()]
    return ast.unparse(tree)


def _without_effect(node: ast.stmt) -> bool:
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return text or isinstance(node, ast.Import | ast.ImportFrom)
