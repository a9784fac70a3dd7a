"""The installed models: packages that declare an entry point in the group `nanozoo.models`.

An entry point `hnet = "nanozoo_hnet"` promises `nanozoo_hnet.config.Config` (a frozen dataclass,
free of torch), `nanozoo_hnet.model.Model` (built from that config alone), optionally
`nanozoo_hnet.adapter.Adapter`, and `nanozoo_hnet/conf/model/hnet.yaml`.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from importlib import metadata
from typing import Any

from nanozoo_core.errors import ConfigError, suggest

GROUP = "nanozoo.models"


@cache
def model_modules() -> dict[str, str]:
    """Module of every installed model by name, sorted."""
    found = {entry.name: entry.value for entry in metadata.entry_points(group=GROUP)}
    return dict(sorted(found.items()))


def model_summaries() -> dict[str, str]:
    """The one-line description of every installed model, from its distribution."""
    summaries = {}
    for entry in metadata.entry_points(group=GROUP):
        dist = entry.dist
        summaries[entry.name] = (dist.metadata["Summary"] or "") if dist is not None else ""
    return dict(sorted(summaries.items()))


def check_model_name(name: str) -> None:
    """Raises: ConfigError that lists the installed models when `name` is not one of them, or says
    that its package is gone, as that of an editable install whose folder was deleted."""
    installed = model_modules()
    if name not in installed:
        names = ", ".join(installed) or "none"
        raise ConfigError(
            f"model={name} is not installed{suggest(name, installed)}; installed models: {names}"
        )

    module = installed[name]
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        (entry,) = metadata.entry_points(group=GROUP, name=name)
        dist = f"nanozoo-{name}" if entry.dist is None else entry.dist.name
        raise ConfigError(
            f"model={name} is announced by {dist}, whose module {module} is not there: was its "
            f"folder moved or deleted? Install it again, or remove it by 'uv pip uninstall {dist}'"
        )


def config_class(name: str) -> type[Any]:
    """The config dataclass of a model."""
    check_model_name(name)
    found: type[Any] = named_object(name, "config", "Config", "the model's settings")
    return found


def named_object(name: str, part: str, attribute: str, what: str) -> Any:
    """What a module of a model's package has to define, such as `Config` of config.py.

    Raises: ConfigError where the module is not there, or lacks it.
    """
    package = model_modules()[name]
    module = f"{package}.{part}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ConfigError(
            f"model={name} has no {part}.py in its package {package}; it defines {attribute}, "
            f"{what}"
        ) from error
    if not hasattr(found, attribute):
        raise ConfigError(
            f"{found.__file__} defines no {attribute}; end it with '{attribute} = ...', the class "
            f"of {what}"
        )
    return getattr(found, attribute)
