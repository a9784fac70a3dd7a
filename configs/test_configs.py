"""Composes and validates every YAML: the recipes here and each installed model's own.

Runs under pytest, or as a script: `python configs/test_configs.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nanozoo_core import registry
from nanozoo_core.config import TrainingConfig, compose_config, training_config
from nanozoo_core.errors import ConfigError
from nanozoo_core.training import describe

CONFIGS = Path(__file__).parent
RECIPES = sorted(CONFIGS.glob("*.yaml"))
MODELS = list(registry.model_modules())
PACKAGES = sorted(path.parent.name for path in CONFIGS.parent.glob("packages/*/pyproject.toml"))


def load_recipe(path: Path) -> TrainingConfig:
    """Raises: ConfigError when the recipe has a key that nothing reads, or a wrong value."""
    return training_config(compose_config(recipe=path))


def load_model(name: str) -> TrainingConfig:
    """Raises: ConfigError when the model's YAML does not validate."""
    return training_config(compose_config([f"model={name}"]))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads(path: Path) -> None:
    """A file is named after its model; a second form of it adds a word."""
    model = load_recipe(path).model
    assert path.stem == model or path.stem.startswith(f"{model}_")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_can_be_planned(path: Path) -> None:
    """Its parameters, FLOPs, memory and time are known without the machine it is meant for."""
    shown = describe.describe_model([], recipe=path)
    for part in ("\nparameters: ", "\nbudget: ", "\ntime: ", "\nmemory of weights"):
        assert part in shown
    assert f"train --config {path}" in shown


@pytest.mark.parametrize("name", MODELS)
def test_model_loads(name: str) -> None:
    assert load_model(name).model == name


@pytest.mark.parametrize("name", PACKAGES)
def test_model_has_a_recipe(name: str) -> None:
    assert (CONFIGS / f"{name}.yaml").is_file()


@pytest.mark.parametrize("line", ["train: {max_stepz: 1}", "model_cfg: {widht: 1}", "spare: 1"])
def test_a_key_that_nothing_reads_fails(line: str, tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(f"defaults: [training, override model: {MODELS[0]}, _self_]\n{line}\n")
    with pytest.raises(ConfigError, match="is not a setting"):
        load_recipe(recipe)


def main() -> int:
    """Prints one line per YAML; the exit status is the number that fail."""
    failures = 0
    checks = [(f"configs/{path.name}", load_recipe, path) for path in RECIPES]
    checks += [(f"model {name}", load_model, name) for name in MODELS]
    for label, load, argument in checks:
        try:
            load(argument)
        except ConfigError as error:
            failures += 1
            print(f"FAIL {label}")
            for problem in error.problems:
                print(f"     {problem}")
        else:
            print(f"ok   {label}")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
