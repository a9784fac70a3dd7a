"""What several rooms read of the environment."""

from __future__ import annotations

import os

from nanozoo_core.errors import ConfigError

FORCED = "NANOZOO_CPU_PRECISION"
"""float32 or bfloat16: what auto is on a CPU without a measurement, such as in tests."""


def forced_precision() -> str | None:
    """float32, bfloat16, or None where a measurement decides. Raises: ConfigError."""
    name = os.environ.get(FORCED, "")
    if name not in ("", "float32", "bfloat16"):
        raise ConfigError(f"{FORCED}={name} must be float32 or bfloat16, or not be set")
    return name or None
