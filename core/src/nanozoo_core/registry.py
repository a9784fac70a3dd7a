"""The installed models: packages that declare an entry point in the group `nanozoo.models`.

An entry point `hnet = "nanozoo_hnet"` promises `nanozoo_hnet.config.Config` (a frozen dataclass,
free of torch), `nanozoo_hnet.model.Model` (built from that config alone), optionally
`nanozoo_hnet.adapter.Adapter`, and `nanozoo_hnet/conf/model/hnet.yaml`.
"""

from __future__ import annotations

import importlib
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
    """Raises: ConfigError that lists the installed models when `name` is not one of them."""
    installed = model_modules()
    if name not in installed:
        names = ", ".join(installed) or "none"
        raise ConfigError(
            f"model={name} is not installed{suggest(name, installed)}; installed models: {names}"
        )


def config_class(name: str) -> type[Any]:
    """The config dataclass of a model."""
    check_model_name(name)
    config: type[Any] = importlib.import_module(f"{model_modules()[name]}.config").Config
    return config
