"""The values that training.yaml and the models' YAML files hold: the one place where they stand."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from nanozoo_core import registry
from nanozoo_core.config import schema, settings, tuning
from nanozoo_core.errors import ConfigError, Problems, show_value

T = TypeVar("T")

SECTIONS: dict[type, str] = {
    settings.TrainingConfig: "",
    settings.DataConfig: "data",
    settings.TrainConfig: "train",
    settings.OptimConfig: "optim",
    settings.AdamWConfig: "optim.adamw",
    settings.MuonConfig: "optim.muon",
    settings.EvalConfig: "eval",
    settings.CheckpointConfig: "checkpoint",
    settings.DistributedConfig: "distributed",
    settings.LogConfig: "log",
    tuning.TuneConfig: "tune",
}
"""Where each settings class stands in training.yaml."""


def from_defaults(cls: type[T], **changes: Any) -> T:
    """A section of training.yaml as its settings class, with changes: for Python and tests.

    Args: cls: such as OptimConfig; changes: values of its fields, sections as dicts or as objects.
    Raises: ConfigError as for a value on the command line.
    """
    path = SECTIONS[cls]
    values = training_defaults()
    for key in path.split(".") if path else []:
        values = values[key]
    return schema.from_dict(cls, merged(values, changes), path)


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with `changes`, section by section."""
    result = dict(values)
    for key, change in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(change, dict):
            change = merged(old, change)
        result[key] = change
    return result


def training_defaults() -> dict[str, Any]:
    """The values of training.yaml; the model is not among them."""
    return copy.deepcopy(_yaml("nanozoo_core.config", "training.yaml"))


def model_defaults(name: str) -> dict[str, Any]:
    """The values of a model's own YAML: `model_cfg`, and the training settings that it changes.

    Raises: ConfigError when the model is not installed, or has no such file.
    """
    registry.check_model_name(name)
    module = registry.model_modules()[name]
    try:
        return copy.deepcopy(_yaml(f"{module}.conf", f"model/{name}.yaml"))
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ConfigError(
            f"model={name} has no conf/model/{name}.yaml in its package {module}; that file holds "
            "the values of its settings"
        ) from error


def changed_settings(name: str, config: object) -> dict[str, Any]:
    """What of a model's config differs from its YAML: what has no effect may only be as there."""
    shipped = model_defaults(name)["model_cfg"]
    return {key: value for key, value in schema.to_dict(config).items() if value != shipped[key]}


def refuse_unused(problems: Problems, name: str, config: object, unused: Mapping[str, str]) -> None:
    """Records every setting of a model's config that was changed to no effect.

    Args: unused: by key, the setting that leaves it without effect, such as "num_experts=1".
    """
    for key, value in changed_settings(name, config).items():
        if key in unused and value is not None:
            problems.add(
                f"model_cfg.{key}={show_value(value)} has no effect with model_cfg.{unused[key]}; "
                "leave it out"
            )


@cache
def _yaml(package: str, path: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    text = resources.files(package).joinpath(path).read_text(encoding="utf-8")
    loaded = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items() if key != "defaults"}
