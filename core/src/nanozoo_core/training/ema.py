"""An exponential moving average of a model's weights (`train.ema`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nanozoo_core.optim.sharding import Pieces, Readable, fill, gather_whole, pieces_of


def ramped_decay(decay: float, num_updates: int) -> float:
    """The decay of the update after `num_updates` others: it rises to `decay`, so that the random
    weights of the start, which a long average would keep for long, are soon forgotten."""
    return min(decay, (1 + num_updates) / (10 + num_updates))


class WeightAverage:
    """The average weights of `model`, which its score and its samples come from; with a `decay` of
    0 nothing is averaged, and they are the model's own."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self._means = [p.detach().clone() for p in model.parameters()] if self.is_kept else []

    @property
    def is_kept(self) -> bool:
        return self.decay > 0

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Moves the average towards the weights of now. Args: num_updates: made before this one,
        which are the steps of the run, so that its state tells them to a resumed run."""
        if self.is_kept:
            weights = [p.detach() for p in self.model.parameters()]
            torch._foreach_lerp_(self._means, weights, 1 - ramped_decay(self.decay, num_updates))

    @contextmanager
    def lent_to_the_model(self) -> Iterator[None]:
        """Inside it the model has its averaged weights."""
        if not self.is_kept:
            yield
            return
        weights = [p.data for p in self.model.parameters()]
        held = [p.clone() for p in weights]
        _copy(weights, self._means)
        try:
            yield
        finally:
            _copy(weights, held)

    def tensors(self) -> dict[str, Tensor]:
        """The whole averages on the CPU, by parameter name; a collective where they are sharded."""
        names = [name for name, _ in self.model.named_parameters()]
        return dict(zip(names, (gather_whole(m).cpu() for m in self._means), strict=True))

    def pieces(self) -> Pieces:
        """What of the averages lies on this rank, by parameter name."""
        names = [name for name, _ in self.model.named_parameters()]
        return dict(zip(names, map(pieces_of, self._means), strict=True))

    def load(self, tensors: Mapping[str, Readable]) -> None:
        """Takes over whole averages, by parameter name."""
        fill(self.pieces(), tensors)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """One by one: sharded tensors have no copy of many at once."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
