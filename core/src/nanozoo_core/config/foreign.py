"""A recipe and the config of a run are data: they may come from somebody else.

Hydra takes its own settings from the file that it composes, and some of them run code (a callback
names any function). So a file that changes them is refused; on the command line they are the user's
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanozoo_core.config.compose import as_config_error, fresh_hydra
from nanozoo_core.errors import ConfigError

NOTED = {"overrides", "runtime"}
NOTED_OF_THE_JOB = {"name", "override_dirname", "id", "num", "config_name"}
"""What Hydra itself writes down of each command, whatever a file says."""


def refuse_hydra_settings(
    path: Path, folder: Path, name: str, overrides: Sequence[str] = ()
) -> None:
    """Composes a file, which runs nothing of it, and compares Hydra's settings with those of core's
    own config.

    Args:
        path: as the user knows the file; folder, name: where Hydra finds it.
        overrides: those without which it cannot be composed.

    Raises: ConfigError when the file, or one that it builds on, changes any, or Hydra refuses it.
    """
    from hydra import compose, initialize_config_dir

    try:
        with fresh_hydra(), initialize_config_dir(str(folder), version_base=None):
            found = _settings(compose(name, list(overrides), return_hydra_config=True))
    except Exception as error:
        raise as_config_error(error) from error
    expected = _own_settings(overrides)
    changed = sorted(key for key in expected if found[key] != expected[key])
    if changed:
        raise ConfigError(
            f"{path} changes hydra.{changed[0]}: recipes and runs hold nanozoo's settings alone, "
            f"since Hydra's own can run code; remove it, or give it on the command line"
        )


def _own_settings(overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_module

    with fresh_hydra(), initialize_config_module("nanozoo_core.config", version_base=None):
        return _settings(compose(None, list(overrides), return_hydra_config=True))


def _settings(composed: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(composed.hydra, resolve=False)
    job = {key: value for key, value in plain["job"].items() if key not in NOTED_OF_THE_JOB}
    return {key: value for key, value in plain.items() if key not in NOTED} | {"job": job}
