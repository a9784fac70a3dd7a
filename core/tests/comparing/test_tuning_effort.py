"""Whether models that are compared were tuned with the same effort, as their recipes say."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanozoo_core.comparing.compare.report import Report
from nanozoo_core.comparing.scale.request import parse
from nanozoo_core.comparing.tune.provenance import Effort, effort_of, undertuned, unequal
from nanozoo_core.errors import ConfigError


def recipe(
    folder: Path, name: str, words: str = "", first: str = "# Found by `nanozoo tune` on"
) -> Path:
    """Of `toy`, by a search of that command."""
    path = folder / f"{name}.yaml"
    head = f"{first} 2026-01-01, by the command\n#   nanozoo tune {words}\n" if words else ""
    path.write_text(head + "defaults: [training, {override model: toy}, _self_]\n")
    return path


def test_the_effort_is_that_of_the_command(tmp_path: Path) -> None:
    usual = effort_of(recipe(tmp_path, "a", "models=toy,'b:toy' control=vanilla"))
    assert usual == Effort(24, "bytes_1e06", "core")
    other = recipe(tmp_path, "b", "models=toy trials=6 budget=tokens:1e5 space=full seeds=9")
    assert effort_of(other) == Effort(6, "tokens_100000", "full")
    assert effort_of(None) is effort_of(tmp_path / "none.yaml") is None
    assert effort_of(recipe(tmp_path, "c")) is None
    assert effort_of(recipe(tmp_path, "d", "models=toy", first="# Written by hand,")) is None
    assert effort_of(recipe(tmp_path, "e", "models=toy trials=many")) is None
    assert effort_of(recipe(tmp_path, "f", "models='toy")) is None


def test_as_many_trials_of_the_same_kind_are_enough() -> None:
    usual = Effort(24, "bytes_1e06", "core")
    assert usual.reaches(usual)
    assert Effort(30, "bytes_1e06", "core").reaches(usual)
    assert not Effort(23, "bytes_1e06", "core").reaches(usual)
    assert not Effort(24, "bytes_2e06", "core").reaches(usual)
    assert not Effort(24, "bytes_1e06", "full").reaches(usual)


def test_models_with_different_effort_are_named(tmp_path: Path) -> None:
    one, same = (recipe(tmp_path, name, "models=toy trials=8") for name in "ab")
    less = recipe(tmp_path, "c", "models=toy trials=4")
    assert unequal({"a": one, "b": same}) is None
    assert unequal({"a": None, "b": None}) is None
    text = unequal({"a": one, "b": same, "c": less, "d": None})
    assert text is not None
    assert "a, b: 8 trials of bytes_1e06, space=core; c: 4 trials" in text
    assert text.endswith("d: none.")
    assert undertuned(less, {"a": one, "c": less, "d": None}) == ["a"]
    assert undertuned(None, {"a": one, "d": None}) == ["a"]
    assert undertuned(one, {"c": less}) == []


def test_a_ladder_with_an_untuned_control_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    recipe(tmp_path, "wide", "models=toy trials=8")
    words = ["models=wide:toy", "control=toy", f"recipes={tmp_path}"]
    with pytest.raises(ConfigError, match="wide: the recipe is that of a search, and the control"):
        parse(words)
    assert parse([*words, "untuned=allow"]).entrants[1].recipe == tmp_path / "wide.yaml"
    with pytest.raises(ConfigError, match="untuned=yes must be one of refuse, allow"):
        parse([*words, "untuned=yes"])
    recipe(tmp_path, "toy-bytes_1e6", "models=toy trials=8")
    assert parse(words).control.recipe is not None


def test_a_comparison_says_so_where_it_has_scores() -> None:
    assert Report("t", "c", [], {}, ("more was tuned",)).warnings == []
