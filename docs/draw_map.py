"""Draws the rooms of core and who imports whom, from the code itself.

    python docs/draw_map.py            writes docs/pages/architecture.svg
    python docs/draw_map.py --check    exits with 1 when that file is not what would be written

The rows are the layers that pyproject.toml gives to import-linter. An arrow that others imply is
left out; one that would point upwards is red.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "pages" / "architecture.svg"
CORE = "nanozoo_core"
MODELS = "the seventeen models"
ROW, GAP, WIDTH, BOX_HEIGHT, SIDE = 66, 24, 1000, 38, 150

Edges = dict[str, set[str]]


def layers() -> list[list[str]]:
    """Rooms and modules of core from the top to the ground, as import-linter knows them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rows = project["tool"]["importlinter"]["contracts"][0]["layers"]
    split = [[name.strip().removeprefix(f"{CORE}.") for name in row.split("|")] for row in rows]
    rooms = [row for row in split if row != ["train"]]
    rooms[rooms.index(["comparing"])].insert(0, MODELS)  # they know neither row from there on
    return rooms


def imported_modules(path: Path) -> set[str]:
    """Every module of core that a file imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith(f"{CORE}.")}


def room_of(module: str) -> str:
    """The part of core's name that says where a module lies."""
    return module.split(".")[1]


def imports() -> tuple[Edges, dict[str, int]]:
    """Who imports whom, and how many modules each room has."""
    edges: Edges = defaultdict(set)
    sizes: dict[str, int] = defaultdict(int)
    source = ROOT / "core" / "src" / CORE
    files = {path: path.relative_to(source).parts[0] for path in source.rglob("*.py")}
    for path, first in files.items():
        room = first.removesuffix(".py")
        if path.name != "__init__.py":
            sizes[room] += 1
        edges[room] |= {room_of(name) for name in imported_modules(path)} - {room}
    for path in ROOT.glob("packages/*/src/**/*.py"):
        sizes[MODELS] += path.name != "__init__.py"
        edges[MODELS] |= {room_of(name) for name in imported_modules(path)}
    return edges, sizes


def without_implied(edges: Edges, rooms: list[str]) -> Edges:
    """The arrows that no longer way stands for."""

    def reaches(start: str, end: str, seen: set[str]) -> bool:
        nearer = edges[start] & set(rooms) - seen
        return end in nearer or any(reaches(room, end, seen | nearer) for room in nearer)

    kept: Edges = defaultdict(set)
    for room in rooms:
        for target in edges[room] & set(rooms):
            others = edges[room] & set(rooms) - {target}
            if not any(reaches(other, target, {room}) for other in others):
                kept[room].add(target)
    return kept


def draw() -> str:
    """The picture as SVG."""
    rows = layers()
    edges, sizes = imports()
    rooms = [room for row in rows for room in row]
    level = {room: number for number, row in enumerate(rows) for room in row}
    boxes: dict[str, tuple[float, float, float]] = {}  # left, top, width
    space = WIDTH - SIDE - 3 * GAP
    for number, row in enumerate(rows):
        width = min(230.0, (space - GAP * (len(row) - 1)) / len(row))
        left = GAP + (space - width * len(row) - GAP * (len(row) - 1)) / 2
        for place, room in enumerate(row):
            boxes[room] = (left + place * (width + GAP), GAP + number * ROW, width)
    height = GAP + len(rows) * ROW
    parts = []
    for room, targets in sorted(without_implied(edges, rooms).items()):
        for target in sorted(targets, key=rooms.index):
            parts.append(arrow(boxes[room], boxes[target], level[target] > level[room]))
    parts += [box(room, sizes[room], *boxes[room]) for room in rooms]
    parts.append(side_box(sizes["testing"], height))
    style = (
        "text{font:14px sans-serif;text-anchor:middle;fill:#1b1f24}"
        ".n{font-size:11px;fill:#57606a}rect{fill:#f3f6fa;stroke:#57606a}"
        "path{fill:none;stroke:#57606a;stroke-width:1.3;marker-end:url(#head)}"
        ".up{stroke:#c00000}"
    )
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><polygon points="0 0, 8 4, 0 8" fill="#57606a"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="The rooms of core and their imports"><style>{style}</style>'
        f'<defs>{head}</defs><rect width="{WIDTH}" height="{height}" '
        f'style="fill:#ffffff;stroke:none"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def box(room: str, size: int, left: float, top: float, width: float) -> str:
    middle = left + width / 2
    note = f"{size} modules" if size > 1 else "a module"
    return (
        f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="5"/>'
        f'<text x="{middle:.0f}" y="{top + 17}">{room}</text>'
        f'<text class="n" x="{middle:.0f}" y="{top + 31}">{note}</text>'
    )


def side_box(size: int, height: int) -> str:
    """The kit for tests, which stands beside all rooms and may import any."""
    left = WIDTH - SIDE - GAP
    middle = left + SIDE / 2
    return (
        f'<rect x="{left}" y="{GAP}" width="{SIDE}" height="{height - 2 * GAP}" rx="5"/>'
        f'<text x="{middle:.0f}" y="{height / 2 - 8:.0f}">testing</text>'
        f'<text class="n" x="{middle:.0f}" y="{height / 2 + 10:.0f}">{size} modules; may import'
        f"</text>"
        f'<text class="n" x="{middle:.0f}" y="{height / 2 + 25:.0f}">any room, and none</text>'
        f'<text class="n" x="{middle:.0f}" y="{height / 2 + 40:.0f}">imports it</text>'
    )


def arrow(
    start: tuple[float, float, float], end: tuple[float, float, float], is_downwards: bool
) -> str:
    x, y = start[0] + start[2] / 2, start[1] + BOX_HEIGHT
    u, v = end[0] + end[2] / 2, end[1]
    bend = (v - y) / 2
    css = "" if is_downwards else ' class="up"'
    curve = f"M{x:.0f} {y} C{x:.0f} {y + bend:.0f} {u:.0f} {v - bend:.0f} {u:.0f} {v}"
    return f'<path{css} d="{curve}"/>'


def main() -> int:
    picture = draw()
    if "--check" not in sys.argv[1:]:
        PICTURE.write_text(picture, encoding="utf-8")
        return 0
    if not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != picture:
        print("docs/pages/architecture.svg is stale; run: python docs/draw_map.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
