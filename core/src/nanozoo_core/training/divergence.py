"""What is said when a run has diverged, and which of its checkpoints is known to be good."""

from __future__ import annotations

from nanozoo_core.errors import NonFiniteError
from nanozoo_core.training.run_folder import RunFolder, TrainState


def diverged(what: str, state: TrainState, folder: RunFolder) -> NonFiniteError:
    """The error of a run that stops. Args: what: is not finite, as a sentence without its end.

    A checkpoint is good once a loss from its weights was finite.
    """
    good = state.last_good_step
    if good is None or not folder.checkpoint(good).is_dir():
        there = "no checkpoint is known to be good; start again with"
    else:
        there = (
            f"the last good checkpoint is {folder.checkpoint(good)}; go on from it with "
            f"train resume={folder}@{good} and"
        )
    return NonFiniteError(f"{what}; {there} a lower optim.lr or a longer optim.warmup")
