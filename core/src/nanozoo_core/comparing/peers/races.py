"""Which races there are, and what each needs to run here."""

from __future__ import annotations

import importlib.util
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanozoo_core import registry
from nanozoo_core.errors import ConfigError

FOLDER_OF_CLONES = "PEERS"
"""The environment variable that names it."""


@dataclass(frozen=True)
class Race:
    """One script with one peer, an entry of races.toml."""

    model: str
    peer: str
    script: str
    options: Sequence[str] = ()
    clones: Mapping[str, str] = field(default_factory=dict)
    """Addresses of repositories by the folder in which their clone lies."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Names of distributions by the module that they install."""

    def missing(self) -> str | None:
        """What has to be cloned or installed first, or None."""
        if self.model not in registry.model_modules():
            return f"the model {self.model} is not installed"
        wants = [
            f"git clone {address} {place}"
            for name, address in self.clones.items()
            if not (place := clones_folder() / name).is_dir()
        ]
        absent = [d for m, d in self.packages.items() if importlib.util.find_spec(m) is None]
        if absent:
            named = " ".join(f"--with {name}" for name in absent)
            wants.append(f"uv run {named} nanozoo bench --peers")
        return "; ".join(wants) or None


def clones_folder() -> Path:
    """Where the user clones other projects."""
    return Path(os.environ.get(FOLDER_OF_CLONES, "~/peers")).expanduser()


def scripts_folder() -> Path:
    """core/benchmarks/peers of the checkout from which core is installed.

    Raises: ConfigError where core comes from a wheel, which has no benchmarks.
    """
    folder = Path(__file__).resolve().parents[4] / "benchmarks" / "peers"
    if not (folder / "races.toml").is_file():
        raise ConfigError(
            "--peers needs a clone of nanozoo's repository: the races are scripts in its folder "
            "core/benchmarks/peers, which is no part of the installed package; run `uv run nanozoo "
            "bench --peers` in the clone"
        )
    return folder


def read_races(folder: Path) -> list[Race]:
    """All races of races.toml, in its order."""
    entries = tomllib.loads((folder / "races.toml").read_text(encoding="utf-8"))["race"]
    return [Race(**entry) for entry in entries]
