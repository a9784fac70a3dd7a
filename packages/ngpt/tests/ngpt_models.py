"""Settings for the tests of this package."""

from typing import Any

from nanozoo_core.config import model_config
from nanozoo_ngpt.config import NGPTConfig


def make_config(**changes: Any) -> NGPTConfig:
    """The default settings with changes."""
    config: NGPTConfig = model_config("ngpt", changes)
    return config
