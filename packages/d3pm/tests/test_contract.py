from __future__ import annotations

from nanozoo_core.testing import TINY
from nanozoo_core.testing.diffusion.contract import DiffusionContract


class TestContract(DiffusionContract):
    model = "d3pm"
    tiny = TINY | {"cond_dim": 16, "num_timesteps": 32, "sampling_timesteps": 8}
    own_roles = {"net.head.weight": "head"}  # noqa: RUF012
    noise_levels = (5, 20)
