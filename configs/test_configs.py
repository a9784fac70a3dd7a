"""Composes and validates every YAML: the recipes here and each installed model's own.

Runs under pytest, or as a script: `python configs/test_configs.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from nanozoo_core import registry
from nanozoo_core.config import (
    TrainingConfig,
    compose_config,
    model_config,
    training_config,
)
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.training import describe

CONFIGS = Path(__file__).parent
RECIPES = sorted(CONFIGS.rglob("*.yaml"))
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
    """A file is named after its model; a second form of it adds a word, a tuned one its budget."""
    model = load_recipe(path).model
    assert path.stem == model or path.stem.startswith((f"{model}_", f"{model}-"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_can_be_planned(path: Path) -> None:
    """Its parameters, FLOPs, memory and time are known without the machine it is meant for."""
    shown = describe.describe_model([], recipe=path)
    for part in ("\nparameters: ", "\nbudget: ", "\ntime: ", "\nmemory of weights"):
        assert part in shown
    assert f"train --config {path}" in shown


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_has_a_table_of_what_its_step_counts(name: str) -> None:
    """Without it the contract kit compares nothing."""
    assert (CONFIGS.parent / "packages" / name / "tests" / "step_counts.json").is_file()


@pytest.mark.parametrize("name", ["mod", "moe"])
def test_recipe_of_one_idea_is_the_controls_but_for_the_idea(name: str) -> None:
    control, other = (load_recipe(CONFIGS / f"{model}.yaml") for model in ("vanilla", name))
    for part in ("data", "train", "optim", "eval"):
        assert getattr(other, part) == getattr(control, part), part
    for key in ("num_layers", "model_dim", "num_heads", "mlp_ratio"):
        assert other.model_cfg[key] == control.model_cfg[key], key


@pytest.mark.parametrize(
    ("recipe", "vocab_size", "num_parameters"),
    [
        ("mod", 50257, 162_725_382),
        ("mod_20_layers", 50257, 219_745_802),
        ("moe", 50257, 330_954_240),
        ("moe_olmoe", 50304, 6_919_028_736),  # 6.92 B, as published
        ("ngpt_0.5b", 32000, 468_491_520),  # 468.4 M
        ("ngpt_1b", 32000, 1_026_177_280),  # 1026.1 M
        ("rd", 50257, 96_437_760),
        ("rd_3.5b", 65536, 3_564_976_800),  # 3.5 B
    ],
)
def test_recipe_has_the_size_that_it_states(
    recipe: str, vocab_size: int, num_parameters: int
) -> None:
    """Over the paper's vocabulary, where that is another."""
    config = load_recipe(CONFIGS / f"{recipe}.yaml")
    settings = config.model_cfg | {"vocab_size": None}
    seq_len = config.data.seq_len
    model_cfg = model_config(config.model, settings, seq_len=seq_len, vocab_size=vocab_size)
    with torch.device("meta"):
        model = load_adapter(config.model).make_model(model_cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


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
    checks = [(str(path.relative_to(CONFIGS.parent)), load_recipe, path) for path in RECIPES]
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
