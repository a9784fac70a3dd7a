"""What a script of this folder writes into a page stands between two marks of its own."""

from __future__ import annotations

from pathlib import Path


def marks_of(script: str) -> tuple[str, str]:
    """Those of a script, by its file."""
    return f"<!-- written by docs/{Path(script).name} -->", "<!-- end of it -->"


def between(page: str, text: str, marks: tuple[str, str]) -> str:
    """The page with `text` between its marks. Raises: ValueError where it has not one of each."""
    begin, end = marks
    before, _, rest = page.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark or begin in rest or end in after:
        raise ValueError(f"the page must hold {begin} and then {end}, once each")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"
