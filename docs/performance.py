"""Puts what `nanozoo bench --peers` has measured into docs/pages/performance.md.

    python docs/performance.py runs/peers/TIME/peers.json ...

Of each file one table. Replaces what stands between the marks of the page: the processor's limits,
the table, and the command with its date and commit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marks import between, marks_of

from nanozoo_core.comparing.peers.report import cells, limits_line, markdown

PAGE = Path(__file__).parent / "pages" / "performance.md"
BEGIN, END = MARKS = marks_of(__file__)


def section(record: Mapping[str, Any]) -> str:
    """What the page says of a peers.json."""
    source = f"`{record['command']}`, {record['date']}, commit {record['git_commit']}"
    parts = [f"One thread of {limits_line(record)}.", markdown(cells(record)), f"{source}."]
    return "\n\n".join(parts)


def replaced(page: str, text: str) -> str:
    """The page with `text` between its marks. Raises: ValueError where it has not one of each."""
    return between(page, text, MARKS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", type=Path, nargs="+", metavar="PEERS.JSON")
    records = parser.parse_args().records
    sections = [section(json.loads(path.read_text(encoding="utf-8"))) for path in records]
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replaced(page, "\n\n".join(sections)), encoding="utf-8")


if __name__ == "__main__":
    main()
