from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nanozoo_core.testing import TINY
from nanozoo_core.testing.diffusion.contract import DiffusionContract
from nanozoo_core.testing.diffusion.models import AS_PUBLISHED


class TestContract(DiffusionContract):
    model = "d3pm"
    tiny = TINY | AS_PUBLISHED | {"num_timesteps": 32, "sampling_timesteps": 8}
    own_roles = {"net.head.weight": "head"}  # noqa: RUF012
    noise_levels = (5, 20)
    key_forms = (
        {},
        {"time_conditioning": True},
        {"transition_type": "uniform"},
        {"transition_type": "gaussian", "noise_schedule": "linear", "terminal_mask": False},
        {"transition_type": "band", "noise_schedule": "linear", "band_width": 2},
        {"transition_type": "nearest_neighbor", "nearest_neighbors": 3},
        {"transition_type": "nearest_neighbor", "nearest_neighbors": 3, "nn_mode": "clusters"},
    )
    decided_keys = {  # noqa: RUF012
        "time_conditioning": "all processes but the absorbing one need it; true may say so",
        "noise_schedule": "linear and mutual_info are the same with masks",
    }

    @pytest.fixture(autouse=True)
    def vectors(self, tmp_path: Path) -> None:
        """A file of vectors for the graph, which no type describes."""
        path = tmp_path / "vectors.npy"
        np.save(path, np.random.default_rng(0).standard_normal((8, 4)))
        self.key_values = {"nn_embeddings": [str(path)]}

    more_settings = (
        {"transition_type": "uniform", "noise_schedule": "mutual_info"},
        {"transition_type": "gaussian", "noise_schedule": "linear", "terminal_mask": False},
        {"transition_type": "nearest_neighbor", "nn_mode": "exact"},
        {"transition_type": "nearest_neighbor", "nn_mode": "clusters", "terminal_mask": False},
    )
