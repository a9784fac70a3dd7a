"""Files of other people: what they may say, and that composing them runs none of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanozoo_core.config.foreign import refuse_hydra_settings
from nanozoo_core.errors import ConfigError

RECIPE = "defaults: [training, override model: toy, _self_]\ntrain: {max_steps: 3}\n"
CALLBACK = "callbacks: {x: {_target_: os.mkdir, path: %s}}"
WAYS = {
    "callback": (f"hydra: {{{CALLBACK}}}\n", "callbacks"),
    "search path": ("hydra: {searchpath: ['file:///tmp']}\n", "searchpath"),
    "environment": ("hydra: {job: {env_set: {LD_PRELOAD: x}}}\n", "job"),
    "folder": ("hydra: {run: {dir: /tmp}}\n", "run"),
    "launcher": ("hydra: {launcher: {_target_: os.mkdir}}\n", "launcher"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("base", [RECIPE, "model: toy\ntrain: {max_steps: 3}\n"])
def test_a_file_cannot_change_hydras_settings(way: str, base: str, tmp_path: Path) -> None:
    text, key = WAYS[way]
    made = tmp_path / "made"
    path = tmp_path / "config.yaml"
    path.write_text(base + (text % made if "%s" in text else text))
    with pytest.raises(ConfigError, match=rf"config\.yaml changes hydra\.{key}: "):
        refuse_hydra_settings(path, tmp_path, "config")
    assert not made.exists()


def test_nor_by_another_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(f"# @package hydra\n{CALLBACK % 'y'}\n")
    path = tmp_path / "recipe.yaml"
    path.write_text("defaults: [training, other, override model: toy, _self_]\n")
    with pytest.raises(ConfigError, match=r"changes hydra\.callbacks"):
        refuse_hydra_settings(path, tmp_path, "recipe")


def test_settings_of_nanozoo_are_its_to_change(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    refuse_hydra_settings(path, tmp_path, "recipe")
