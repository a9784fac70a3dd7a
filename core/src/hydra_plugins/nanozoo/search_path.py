"""Lets Hydra find `training.yaml` and the conf/ folder of every installed model."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from nanozoo_core.registry import model_modules


class NanozooSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("nanozoo", "pkg://nanozoo_core.config")
        for name, module in model_modules().items():
            search_path.append(f"nanozoo-{name}", f"pkg://{module}.conf")
