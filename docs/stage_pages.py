"""Puts together what the site is made of, in docs/staged: the pages, and the READMEs of the models.

    python docs/stage_pages.py

A link between files of the repository becomes one between pages. The committed report.md becomes
the index of its folder, since as report.html it would take the place of the page beside it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES, STAGED = ROOT / "docs/pages", ROOT / "docs/staged"
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def sources() -> dict[Path, Path]:
    """Where each file of the site comes from, by its place in it."""
    found = {path.relative_to(PAGES): path for path in PAGES.rglob("*") if path.is_file()}
    for report in [place for place in found if place.name == "report.md"]:
        found[report.with_name("index.md")] = found.pop(report)
    for readme in sorted(ROOT.glob("packages/*/README.md")):
        found[Path("models") / f"{readme.parent.name}.md"] = readme
        for target in LINK.findall(readme.read_text(encoding="utf-8")):
            if target.endswith(".png"):  # with the pictures that it shows
                picture = (readme.parent / target).resolve()
                found[Path("models") / f"{readme.parent.name}-{picture.name}"] = picture
    found[Path("peers.md")] = ROOT / "core/benchmarks/peers/README.md"
    return found


def stage() -> None:
    """Raises: ValueError for a link to a file that is not part of the site."""
    shutil.rmtree(STAGED, ignore_errors=True)
    found = sources()
    places = {path: place for place, path in found.items()}
    for place, path in found.items():
        (STAGED / place).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = relinked(path.read_text(encoding="utf-8"), path, place, places)
            (STAGED / place).write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(path, STAGED / place)


def relinked(text: str, path: Path, place: Path, places: dict[Path, Path]) -> str:
    """The text of a file with the links that its page needs."""

    def new(match: re.Match[str]) -> str:
        target = (path.parent / match[1]).resolve()
        if target.is_dir():
            target /= "README.md"
        if target not in places:
            raise ValueError(f"{path} links to {match[1]}, which is no page of the site")
        return "](" + Path(os.path.relpath(places[target], place.parent)).as_posix()

    return LINK.sub(new, text)


if __name__ == "__main__":
    stage()
