from __future__ import annotations

from nanozoo_core.testing import TINY
from nanozoo_core.testing.diffusion.contract import DiffusionContract
from nanozoo_core.testing.diffusion.models import AS_PUBLISHED


class TestContract(DiffusionContract):
    model = "d3pm"
    tiny = TINY | AS_PUBLISHED | {"cond_dim": 16, "num_timesteps": 32, "sampling_timesteps": 8}
    own_roles = {"net.head.weight": "head"}  # noqa: RUF012
    noise_levels = (5, 20)
    more_settings = (
        {"transition_type": "uniform", "noise_schedule": "mutual_info"},
        {"transition_type": "gaussian", "noise_schedule": "linear", "terminal_mask": False},
        {"transition_type": "nearest_neighbor", "nn_mode": "exact"},
        {"transition_type": "nearest_neighbor", "nn_mode": "clusters", "terminal_mask": False},
    )
