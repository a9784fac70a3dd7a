"""What the pages say of the code and of each other is true."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter

sys.path.insert(0, str(Path(__file__).parent))
import stage_pages

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("core/README.md"),
    *ROOT.glob("configs/README.md"),
    *ROOT.glob("packages/*/README.md"),
    *ROOT.glob("docs/pages/**/*.md"),
]


def overridden_methods() -> list[tuple[str, str]]:
    """(method, model) for each pair that the table in adding-a-model.md names."""
    page = (ROOT / "docs/pages/adding-a-model.md").read_text(encoding="utf-8")
    table = page.split("| what differs |")[1].split("\n\n")[0]
    pairs = []
    for row in table.splitlines()[2:]:
        _, methods, models = (cell.strip() for cell in row.strip("|").split("|"))
        pairs += [(name, m) for name in re.findall(r"`(\w+)`", methods) for m in models.split(", ")]
    return pairs


@pytest.mark.parametrize("method", sorted({method for method, _ in overridden_methods()}))
def test_a_method_is_overridden_where_the_page_says(method: str) -> None:
    models = [model for name, model in overridden_methods() if name == method]
    default = getattr(DefaultModelAdapter, method)
    found = [m for m in models if getattr(type(load_adapter(m)), method) is not default]
    assert found, f"{method} is overridden in none of {models}"


@pytest.mark.parametrize("row", overridden_methods(), ids="-".join)
def test_a_named_model_overrides_something_of_its_row(row: tuple[str, str]) -> None:
    method, model = row
    page = (ROOT / "docs/pages/adding-a-model.md").read_text(encoding="utf-8")
    [line] = [line for line in page.splitlines() if line.startswith("|") and f"`{method}`" in line]
    methods = re.findall(r"`(\w+)`", line)
    adapter = type(load_adapter(model))
    assert any(getattr(adapter, m) is not getattr(DefaultModelAdapter, m) for m in methods)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [t for t in targets if t and ":" not in t and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_named_by_a_page_are_there(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it names what was
    text = page.read_text(encoding="utf-8")
    names = {
        name for name in re.findall(r"\bnanozoo_core(?:[./]\w+)+", text) if "my_idea" not in name
    }
    assert [name for name in sorted(names) if not _is_there(re.split(r"[./]", name))] == []


def _is_there(parts: list[str]) -> bool:
    """Whether the longest part of a dotted name that is a module has the rest as attributes."""
    if parts[-1] in ("py", "yaml"):
        return (ROOT / "core/src" / "/".join(parts[:-1])).with_suffix(f".{parts[-1]}").is_file()
    for size in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[size:]:
            found = getattr(found, attribute, None)
        return found is not None
    return False


def test_the_map_shows_the_imports_of_today() -> None:
    done = subprocess.run(
        [sys.executable, "docs/draw_map.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_site_lists_every_page_and_none_takes_the_place_of_a_file() -> None:
    found = stage_pages.sources()
    pages = {place.as_posix() for place in found if place.suffix == ".md"}
    config = (ROOT / "docs/mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- (?:.*: )?(\S+\.md)$", config, re.MULTILINE)
    assert sorted(listed) == sorted(pages)
    models = {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")}
    assert {f"models/{model}.md" for model in models} <= pages
    rendered = {Path(page).with_suffix(".html") for page in pages}
    assert not rendered & set(found)
    assert Path("report/report.html") in found
