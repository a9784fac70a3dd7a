"""Settings for the tests of this package."""

from typing import Any

from nanozoo_core.config import model_config
from nanozoo_gpt2.config import GPT2Config


def make_config(**changes: Any) -> GPT2Config:
    """The default settings with changes."""
    config: GPT2Config = model_config("gpt2", changes)
    return config
