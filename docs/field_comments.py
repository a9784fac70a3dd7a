"""An extension of griffe: the comment behind a field becomes its text in the API reference.

`tokens: Tensor  # (B, T) int64` is as good a description as a string below the field, and shorter.
"""

from __future__ import annotations

import ast
import io
import tokenize
from typing import Any

from griffe import Attribute, Docstring, Extension, ObjectNode


class FieldComments(Extension):
    """Takes the comment at the end of the line of an attribute that has no docstring."""

    def on_attribute_instance(
        self, *, node: ast.AST | ObjectNode, attr: Attribute, **kwargs: Any
    ) -> None:
        if attr.docstring is not None or attr.lineno is None or isinstance(node, ObjectNode):
            return
        line = attr.lines_collection[attr.filepath][(attr.endlineno or attr.lineno) - 1]
        comment = _comment(line)
        if comment and not comment.startswith(("type:", "noqa")):
            attr.docstring = Docstring(comment, lineno=attr.lineno, parent=attr)


def _comment(line: str) -> str:
    """What stands behind the first `#` that is not part of a string."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(line.strip()).readline):
            if token.type == tokenize.COMMENT:
                return token.string.lstrip("# ").strip()
    except tokenize.TokenError:
        pass  # the line is a part of a longer expression
    return ""
