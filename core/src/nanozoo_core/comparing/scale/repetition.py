"""What text that is read again is worth (Muennighoff et al. 2023, arXiv 2305.16264, section 5)."""

from __future__ import annotations

import numpy as np

from nanozoo_core.comparing.scale.power_law import Array

REPEATS = 15.387756  # after which a repetition is worth 1/e of new text; fitted on 10 M .. 9 B
FLAGGED_EPOCHS = 4.0  # from here on the report names the points
MOST_EPOCHS = 16.0  # beyond which they are in no fit: almost nothing is left to learn


def effective(amount: Array | float, unique: float, repeats: float = REPEATS) -> Array:
    """The amount of new text (or parameters) that is worth as much as this amount with repetitions:
    U + U R* (1 - exp(-R / R*)), R = amount / U - 1; the amount itself where nothing is repeated.

    Args: unique: U, in the unit of `amount`. repeats: R*.
    """
    excess = np.maximum(np.asarray(amount, dtype=np.float64) / unique - 1, 0)
    return np.minimum(amount, unique) - unique * repeats * np.expm1(-excess / repeats)
