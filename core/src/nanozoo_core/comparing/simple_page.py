"""A page of tables and pictures in one file that needs no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
    "color:#33302c;background:#fff}table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:left}"
    "img{max-width:100%}code,pre{background:#f4f2ee;padding:.1rem .3rem}pre{overflow-x:auto}"
    ".warning{border-left:4px solid #c60;padding-left:.8rem}.scroll{overflow-x:auto}"
)


def whole_page(title: str, body: Sequence[str]) -> str:
    """Args: body: parts that are HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>'
        f"{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"{''.join(body)}</body></html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str, *, is_warning: bool = False) -> str:
    kind = ' class="warning"' if is_warning else ""
    return f"<p{kind}>{html.escape(text)}</p>"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Args: rows: the head first."""
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(("th", *["td"] * (len(rows) - 1)), rows, strict=True)
    ]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def picture(path: Path) -> str:
    """A PNG file as a part of the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<p><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}"></p>'
