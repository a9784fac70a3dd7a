"""The table of the tuned recipes, made of the recipes themselves.

    python docs/tuned.py

`nanozoo tune` writes into the first lines of a recipe what it scored, what the committed recipe
scored beside it, and what was chosen of each key. This puts the recipes of configs/tuned/ side by
side in docs/pages/tuned.md. Intervals are Student's, with the spread between seeds pooled over the
rows of a table in which something changed; where nothing did, there is no gain to be uncertain of.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from marks import between, marks_of

from nanozoo_core.comparing.compare.studentized_range import student_quantile

DOCS = Path(__file__).parent
PAGE, RECIPES = DOCS / "pages/tuned.md", DOCS.parent / "configs/tuned"
MARKS = marks_of(__file__)
SCORES = re.compile(
    r"# bits per byte on the test split, a seed each: (?P<tuned>[\d., ]+); "
    r"the committed recipe: (?P<committed>[\d., ]+)"
)
KEY = re.compile(r"# searched (?P<key>\S+): .*; chosen (?P<chosen>\S+), committed (?P<old>\S+)")


@dataclass(frozen=True)
class Recipe:
    """What the first lines of a recipe say."""

    model: str
    budget: str
    tuned: list[float]
    committed: list[float]
    """Bits per byte, a seed each."""
    keys: dict[str, tuple[str, str]]
    """Chosen and committed, as they are written."""

    @property
    def gain(self) -> float:
        return statistics.mean(self.committed) - statistics.mean(self.tuned)

    @property
    def changes(self) -> str:
        changed = {key: values for key, values in self.keys.items() if values[0] != values[1]}
        return ", ".join(f"{key} {old} to {new}" for key, (new, old) in changed.items())


def read(path: Path) -> Recipe:
    """Raises: ValueError where the file does not say what was scored."""
    model, _, budget = path.stem.partition("-")
    text = path.read_text(encoding="utf-8")
    scores = SCORES.search(text)
    if scores is None:
        raise ValueError(f"{path} does not say what it scored; nanozoo tune writes that")
    tuned, committed = (
        [float(score) for score in scores[name].split(", ")] for name in ("tuned", "committed")
    )
    keys = {found["key"]: (found["chosen"], found["old"]) for found in KEY.finditer(text)}
    return Recipe(model, budget, tuned, committed, keys)


def half_width(recipes: Sequence[Recipe]) -> float | None:
    """Of the 95 percent interval of a gain; None where one seed each leaves none."""
    changed = [recipe for recipe in recipes if recipe.changes]
    entries = [scores for recipe in changed for scores in (recipe.tuned, recipe.committed)]
    freedom = sum(len(scores) - 1 for scores in entries)
    if freedom == 0:
        return None
    squares = sum((x - statistics.mean(scores)) ** 2 for scores in entries for x in scores)
    num_seeds = min(len(scores) for scores in entries)
    return student_quantile(0.05, freedom) * float((squares / freedom * 2 / num_seeds) ** 0.5)


def table(recipes: Sequence[Recipe]) -> Iterator[str]:
    """Lines of Markdown, the best first."""
    width = half_width(recipes)
    yield "| model | tuned | committed | gain | what changed |"
    yield "|---|---|---|---|---|"
    for recipe in sorted(recipes, key=lambda one: statistics.mean(one.tuned)):
        gain = f"{recipe.gain:+.3f}" if recipe.changes else "none"
        if recipe.changes and width is not None:
            gain += f" +- {width:.3f}"
        yield (
            f"| {recipe.model} | {statistics.mean(recipe.tuned):.3f} "
            f"| {statistics.mean(recipe.committed):.3f} | {gain} | {recipe.changes or 'nothing'} |"
        )


def written(recipes: Sequence[Recipe]) -> str:
    """What stands between the marks of the page: a table for each budget."""
    parts = []
    for budget in sorted({recipe.budget for recipe in recipes}):
        rows = [recipe for recipe in recipes if recipe.budget == budget]
        parts += [f"Budget `{budget}`:", "", *table(rows), ""]
    return "\n".join(parts).strip()


def replaced(page: str, recipes: Sequence[Recipe]) -> str:
    """The page with its table anew."""
    return between(page, written(recipes), MARKS)


def main() -> None:
    recipes = [read(path) for path in sorted(RECIPES.glob("*.yaml"))]
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), recipes), encoding="utf-8")


if __name__ == "__main__":
    main()
