from __future__ import annotations

from nanozoo_core.testing import TINY
from nanozoo_core.testing.diffusion.contract import DiffusionContract
from nanozoo_core.testing.diffusion.models import AS_PUBLISHED


class TestContract(DiffusionContract):
    model = "sedd"
    tiny = TINY | AS_PUBLISHED | {"cond_dim": 16, "sampling_steps": 8}
    own_roles = {"net.head.weight": "head"}  # noqa: RUF012
    more_settings = ({"transition_type": "uniform"},)
    noise_levels = (0.1, 2.0)
