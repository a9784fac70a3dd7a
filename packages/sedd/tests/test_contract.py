from __future__ import annotations

from nanozoo_core.testing import TINY
from nanozoo_core.testing.diffusion.contract import DiffusionContract
from nanozoo_core.testing.diffusion.models import AS_PUBLISHED


class TestContract(DiffusionContract):
    model = "sedd"
    tiny = TINY | AS_PUBLISHED
    own_roles = {"net.head.weight": "head"}  # noqa: RUF012
    more_settings = ({"transition_type": "uniform"},)
    noise_levels = (0.1, 2.0)
    key_forms = (
        {},
        {"predictor": "first_hitting"},
        {"time_sampler": "t", "time_conditioning": True, "cond_dim": 16},
        {"noise_schedule": "geometric", "time_sampler": "t"},
        {"transition_type": "uniform"},
        {"transition_type": "uniform", "noise_schedule": "loglinear"},
    )
    decided_keys = {  # noqa: RUF012
        "score_scaling": "the graph decides it; true and false may say so",
        "noise_schedule": "loglinear and mutual_info are the same with masks, and auto chooses it",
        "time_sampler": "uniform noise has no masks to count",
        "time_conditioning": "uniform noise cannot do without, first_hitting knows no time",
        "predictor": "with masks under loglinear noise euler is analytic",
    }
