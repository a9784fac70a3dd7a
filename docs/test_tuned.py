"""The table of tuned recipes: that it is what their first lines say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import tuned

HEAD = """\
# Found by `nanozoo tune` on 2026-01-01, by the command
#   nanozoo tune models=a
# trial 3 of 4 with seed 0; 1,000 tokens each
# bits per byte on the test split, a seed each: {tuned}; the committed recipe: {committed}
# data abc, commit None, torch 2, Python 3
# searched batch_tokens: 1024, 2048; chosen 1024, committed 4096
# searched lr: 0.001 to 0.03 (log); chosen 0.004, committed 0.004
defaults: [training]
"""


def recipe(folder: Path, model: str, scores: str, committed: str) -> tuned.Recipe:
    path = folder / f"{model}-bytes_1e6.yaml"
    path.write_text(HEAD.format(tuned=scores, committed=committed), encoding="utf-8")
    return tuned.read(path)


def test_the_page_is_what_the_recipes_say() -> None:
    page = tuned.PAGE.read_text(encoding="utf-8")
    recipes = [tuned.read(path) for path in sorted(tuned.RECIPES.glob("*.yaml"))]
    assert tuned.replaced(page, recipes) == page


def test_a_row_says_what_was_won_and_changed(tmp_path: Path) -> None:
    rows = [
        recipe(tmp_path, "slow", "2.1000, 2.1200", "2.1000, 2.1600"),
        recipe(tmp_path, "fast", "1.9000, 1.9400", "2.0000, 2.0200"),
    ]
    assert rows[1].gain == pytest.approx(0.09)
    # Squares 0.0002 + 0.0018 + 0.0008 + 0.0002 over 4 degrees of freedom, of which the two-sided
    # quantile is 2.776445; the variance of a difference of two means of two is that of one score.
    width = 2.776445 * (0.0030 / 4) ** 0.5
    assert tuned.half_width(rows) == pytest.approx(width, rel=1e-5)
    lines = list(tuned.table(rows))
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| fast", "| slow"]
    assert f"+0.090 +- {width:.3f} | batch_tokens 4096 to 1024 |" in lines[2]


def test_a_search_that_found_nothing_better_widens_no_interval(tmp_path: Path) -> None:
    rows = [
        recipe(tmp_path, "slow", "2.1000, 2.1200", "2.1000, 2.1600"),
        recipe(tmp_path, "same", "1.5000, 1.9000", "1.5000, 1.9000"),
    ]
    same = rows[1]
    rows[1] = replace(same, keys={"lr": ("0.004", "0.004")})
    assert tuned.half_width(rows) == tuned.half_width(rows[:1])
    assert "| 1.700 | 1.700 | none | nothing |" in "\n".join(tuned.table(rows))


def test_one_seed_each_leaves_no_interval(tmp_path: Path) -> None:
    row = recipe(tmp_path, "a", "1.9000", "2.0000")
    assert tuned.half_width([row]) is None
    assert "| +0.100 |" in list(tuned.table([row]))[2]


def test_a_recipe_without_scores_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a-bytes_1e6.yaml").write_text("defaults: [training]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="does not say what it scored"):
        tuned.read(tmp_path / "a-bytes_1e6.yaml")
