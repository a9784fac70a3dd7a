"""A pytest plugin, `-p nanozoo_core.testing.pinned`.

What `dtype=auto` measures on one machine it need not on another, so tests on a CPU compute in
float32 unless they name a type.
"""

from __future__ import annotations

import os

from nanozoo_core.machine.environment import FORCED

os.environ.setdefault(FORCED, "float32")
