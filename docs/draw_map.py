"""Draws the rooms of core and who imports whom, from the code itself.

    python docs/draw_map.py            writes docs/pages/architecture.svg
    python docs/draw_map.py --check    exits with 1 when that file is not what would be written

The rows are the layers that pyproject.toml gives to import-linter. An arrow that others imply is
left out; one that would point upwards or sideways is red, and is never left out. A long arrow has
a place of its own in every row that it passes, so that none runs behind a box: the layout of
Sugiyama, Tagawa and Toda (1981), rows ordered for few crossings and then moved for straight lines.
"""

from __future__ import annotations

import ast
import sys
import textwrap
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from math import fsum  # rounded once, so that every Python draws the same
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "pages" / "architecture.svg"
CORE = "nanozoo_core"
MODELS = "models"
TESTS = "testing"
STARTERS = ["train", "__main__"]  # which only call commands
ROW, BOX, EDGE = 70, 38, 24  # pixels: from row to row, a box's height, the picture's edge
SIDE, WIDE = 150, 540  # pixels: the width of the box for testing, and of that for the models

Edges = dict[str, set[str]]
Node = tuple[str, ...]  # (room,), or (start, end) where a long arrow passes a row
Link = tuple[Node, Node]  # from a row to the next

STYLE = (
    "text{font:14px sans-serif;text-anchor:middle;fill:#1b1f24}.n{font-size:11px;fill:#57606a}"
    "rect{fill:#f3f6fa;stroke:#57606a}"
    "path{fill:none;stroke:#57606a;stroke-width:1.3;marker-end:url(#head)}"
    ".up{stroke:#c00000;marker-end:url(#uphead)}"
)
HEAD = (
    '<marker id="{}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><polygon points="0 0, 8 4, 0 8" style="fill:{}"/></marker>'
)


# -- the code -----------------------------------------------------------------------------------


def layers() -> list[list[str]]:
    """Rooms and modules of core from the top to the ground, as import-linter knows them, below the
    models."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rows = project["tool"]["importlinter"]["contracts"][0]["layers"]
    split = [[name.strip().removeprefix(f"{CORE}.") for name in row.split("|")] for row in rows]
    return [[MODELS], *(row for row in split if row != STARTERS)]


def imported_rooms(path: Path) -> set[str]:
    """The rooms of core that a file imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith(f"{CORE}.")}


def imports() -> tuple[Edges, dict[str, int]]:
    """Who imports whom, and how many modules each room has."""
    edges: Edges = defaultdict(set)
    sizes: dict[str, int] = defaultdict(int)
    source = ROOT / "core" / "src" / CORE
    files = {p: p.relative_to(source).parts[0].removesuffix(".py") for p in source.rglob("*.py")}
    files |= dict.fromkeys(ROOT.glob("packages/*/src/**/*.py"), MODELS)
    for path, room in files.items():
        sizes[room] += path.name != "__init__.py"
        edges[room] |= imported_rooms(path) - {room}
    return edges, sizes


def without_implied(edges: Edges, level: dict[str, int]) -> list[tuple[str, str]]:
    """The arrows between the rooms of `level` that no longer way down stands for."""
    down = {a: {b for b in edges[a] if b in level and level[b] > level[a]} for a in level}

    def reaches(start: str, end: str) -> bool:
        return end in down[start] or any(reaches(room, end) for room in down[start])

    pairs = [(a, b) for a in level for b in sorted(edges[a] & set(level))]
    return [
        (a, b)
        for a, b in pairs
        if b not in down[a] or not any(reaches(other, b) for other in down[a] - {b})
    ]


# -- the layout ---------------------------------------------------------------------------------


def chain(start: str, end: str, level: dict[str, int]) -> list[Node]:
    """What an arrow downwards touches, row by row."""
    return [(start,), *[(start, end)] * (level[end] - level[start] - 1), (end,)]


def ordered(rows: list[list[Node]], links: list[list[Link]]) -> list[list[Node]]:
    """The rows, each in the order of the means of its neighbours' places: of several sweeps down
    and up the one that has the fewest crossings."""
    best, fewest = rows, crossings(rows, links)
    for sweep in range(24):
        rows = [list(row) for row in rows]
        down = sweep % 2 == 0
        for number in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            if down:
                near, pairs = rows[number - 1], [(b, a) for a, b in links[number - 1]]
            else:
                near, pairs = rows[number + 1], links[number]
            row, means = rows[number], {}
            for place, node in enumerate(row):
                places = [near.index(b) / len(near) for a, b in pairs if a == node]
                means[node] = _mean(places, place / len(row))
            rows[number] = sorted(row, key=means.__getitem__)
        if (count := crossings(rows, links)) < fewest:
            best, fewest = rows, count
    return best


def crossings(rows: list[list[Node]], links: list[list[Link]]) -> int:
    """How often arrows cross."""
    count = 0
    for upper, lower, between in zip(rows, rows[1:], links, strict=False):
        ends = [(upper.index(a), lower.index(b)) for a, b in between]
        count += sum(a < c and b > d for a, b in ends for c, d in ends)
    return count


def placed(rows: list[list[Node]], links: list[list[Link]]) -> list[dict[Node, float]]:
    """The middle of every node, row by row: near its neighbours, and no two of a row too near."""
    middles = [{node: 100.0 * place for place, node in enumerate(row)} for row in rows]
    for sweep in range(60):
        order = range(len(rows)) if sweep % 2 == 0 else range(len(rows) - 1, -1, -1)
        for number in order:
            wanted = []
            for node in rows[number]:
                near: list[float] = []
                for a, b in links[number - 1] if number else []:
                    near += [middles[number - 1][a]] * _pull(a, b) if b == node else []
                for a, b in links[number] if number < len(links) else []:
                    near += [middles[number + 1][b]] * _pull(a, b) if a == node else []
                wanted.append(_mean(near, middles[number][node]))
            gaps = [(width(a) + width(b)) / 2 + 18 for a, b in pairwise(rows[number])]
            middles[number] = dict(zip(rows[number], spaced(wanted, gaps), strict=True))
    return middles


def spaced(wanted: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """The numbers nearest to `wanted`, in squares, of which each is at least a gap above the last:
    neighbours that are too near are pooled and moved as one."""
    offsets = [fsum(gaps[:place]) for place in range(len(wanted))]
    pools: list[list[float]] = []
    for number, offset in zip(wanted, offsets, strict=True):
        pools.append([number - offset])
        while len(pools) > 1 and _mean(pools[-2], 0) > _mean(pools[-1], 0):
            last = pools.pop()
            pools[-1] += last
    flat = [_mean(pool, 0) for pool in pools for _ in pool]
    return [number + offset for number, offset in zip(flat, offsets, strict=True)]


def width(node: Node) -> float:
    """Pixels."""
    return 2 if len(node) == 2 else WIDE if node == (MODELS,) else 182


def _pull(a: Node, b: Node) -> int:
    """How much a link wants to be straight: most between two rows that an arrow only passes."""
    return {2: 1, 3: 2, 4: 6}[len(a) + len(b)]


def _mean(numbers: Sequence[float], otherwise: float) -> float:
    return fsum(numbers) / len(numbers) if numbers else otherwise


# -- the picture --------------------------------------------------------------------------------


def draw() -> str:
    """The picture as SVG."""
    rooms = layers()
    edges, sizes = imports()
    level = {room: number for number, row in enumerate(rooms) for room in row}
    if unknown := set(sizes) - set(level) - {TESTS, *STARTERS, "__init__"}:
        sys.exit(f"pyproject.toml gives no layer to {', '.join(sorted(unknown))}")
    arrows = without_implied(edges, level)
    chains = [chain(a, b, level) for a, b in arrows if level[b] > level[a]]
    rows: list[list[Node]] = [[(room,) for room in row] for row in rooms]
    links: list[list[Link]] = [[] for _ in rooms[1:]]
    for nodes in chains:
        first = level[nodes[0][0]]
        for number, (a, b) in enumerate(pairwise(nodes), first):
            links[number].append((a, b))
            if len(b) == 2:
                rows[number + 1].append(b)
    rows = ordered(rows, links)
    middles = placed(rows, links)
    left = min(x - width(node) / 2 for row in middles for node, x in row.items()) - EDGE
    middles = [{node: x - left for node, x in row.items()} for row in middles]
    right = max(x + width(node) / 2 for row in middles for node, x in row.items())
    full, height = right + 2 * EDGE + SIDE, 2 * EDGE + ROW * (len(rows) - 1) + BOX + 10
    parts = [curve(nodes, level, middles, links) for nodes in chains]
    parts += [upward(a, b, level, middles) for a, b in arrows if level[b] <= level[a]]
    for room, number in level.items():
        notes = [_count(sizes[room])]
        if room == MODELS:
            names = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
            notes = textwrap.wrap(", ".join(names), 84)
        x = middles[number][(room,)]
        parts.append(box(room, notes, x, top(number), width((room,)), BOX))
    notes = [_count(sizes[TESTS]), "may import any room;", "no room imports it"]
    parts.append(box(TESTS, notes, right + EDGE + SIDE / 2, EDGE, SIDE, height - 2 * EDGE))
    heads = HEAD.format("head", "#57606a") + HEAD.format("uphead", "#c00000")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full:.0f} {height}" role="img" '
        f'aria-label="The rooms of core and their imports"><style>{STYLE}</style>'
        f'<defs>{heads}</defs><rect width="100%" height="100%" '
        f'style="fill:#ffffff;stroke:none"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def top(number: int) -> int:
    """Where a row begins; the first one is taller by a line of names."""
    return EDGE + number * ROW + (10 if number else 0)


def bottom(number: int) -> int:
    return top(number) + BOX + (0 if number else 10)


def box(
    name: str, notes: Sequence[str], middle: float, upper: float, wide: float, high: float
) -> str:
    """A box with a name and lines below it."""
    if name == MODELS:
        high += 10
    first = upper + high / 2 - 7 * len(notes) + 5
    lines = [f'<text x="{middle:.0f}" y="{first:.0f}">{name}</text>']
    lines += [
        f'<text class="n" x="{middle:.0f}" y="{first + 14 * place:.0f}">{note}</text>'
        for place, note in enumerate(notes, 1)
    ]
    left = middle - wide / 2
    return (
        f'<rect x="{left:.0f}" y="{upper:.0f}" width="{wide:.0f}" height="{high:.0f}" rx="5"/>'
        + "".join(lines)
    )


def port(
    node: Node, links: list[Link], link: Link, here: dict[Node, float], there: dict[Node, float]
) -> float:
    """Where a link touches a node: the arrows of a box stand side by side, in the order of where
    they go."""
    if len(node) == 2:
        return here[node]
    side = link.index(node)
    mine = sorted((each for each in links if each[side] == node), key=lambda e: there[e[1 - side]])
    reach = width(node) / 2 - 24
    wanted = [min(max(there[e[1 - side]], here[node] - reach), here[node] + reach) for e in mine]
    return spaced(wanted, [16.0] * (len(mine) - 1))[mine.index(link)]


def curve(
    nodes: list[Node],
    level: dict[str, int],
    middles: list[dict[Node, float]],
    links: list[list[Link]],
) -> str:
    """An arrow downwards."""
    number = level[nodes[0][0]]
    path = ""
    for row, link in enumerate(pairwise(nodes), number):
        x = port(link[0], links[row], link, middles[row], middles[row + 1])
        u = port(link[1], links[row], link, middles[row + 1], middles[row])
        y, v = bottom(row), top(row + 1)
        middle = (y + v) / 2
        path += f"{'L' if path else 'M'}{x:.0f} {y} "
        path += f"C{x:.0f} {middle:.0f} {u:.0f} {middle:.0f} {u:.0f} {v} "
    return f'<path d="{path.strip()}"/>'


def upward(start: str, end: str, level: dict[str, int], middles: list[dict[Node, float]]) -> str:
    """An arrow that should not be: straight, from box to box."""
    x, u = (middles[level[room]][(room,)] for room in (start, end))
    y, v = top(level[start]), bottom(level[end])
    return f'<path class="up" d="M{x:.0f} {y} L{u:.0f} {v}"/>'


def _count(size: int) -> str:
    return f"{size} modules" if size > 1 else "one module"


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
