"""What the adapters of diffusion models have in common: an upper bound as the score, holes that are
filled step by step, the roles and FLOPs of a DiT, and pictures of the bound by the level of noise.

B windows, S positions, D model_dim, V data tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from nanozoo_core.contract import (
    Batch,
    Curves,
    Inspection,
    Likelihood,
    PartialText,
    SamplingSettings,
    Vocabulary,
)
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.diffusion.bounds import TokenLoss
from nanozoo_core.diffusion.dit import dit_roles
from nanozoo_core.diffusion.levels import by_level, level_curves, means_by_unit
from nanozoo_core.diffusion.masked_nats import counts_to_name, named_nats, nats_by_count
from nanozoo_core.diffusion.model import DiffusionModel
from nanozoo_core.diffusion.unmasking import Holes, masked_window, partial_text


class DiffusionAdapter(DefaultModelAdapter):
    """A subclass gives the training loss, the bound and the sampler's `steps`."""

    likelihood: Likelihood = "upper"
    family = "diffusion"

    @torch.no_grad()
    def denoise(
        self,
        model: nn.Module,
        window: PartialText,
        settings: SamplingSettings,
        generator: torch.Generator,
    ) -> Iterator[list[int | None]]:
        if None not in window:
            return
        mask_id = cast(DiffusionModel, model).mask_id
        device = next(model.parameters()).device
        known = torch.tensor([[token is not None for token in window]], device=device)
        x = masked_window(window, mask_id or 0, device)
        for state in self.steps(model, Holes(x, known, settings, generator)):
            yield partial_text(state[0], mask_id)

    def steps(self, model: nn.Module, holes: Holes) -> Iterator[Tensor]:
        """The windows (B, S) after each step that changed them.

        Raises: ConfigError for a number of steps that the sampler does not take.
        """
        raise NotImplementedError

    def head_share(self, config: Any) -> float:
        """The share of a window's rows that meet the head: half of them where only masked tokens
        are predicted, as their number is uniform."""
        return 0.5

    def parameter_roles(self, model: nn.Module) -> dict[str, str]:
        return dit_roles(model)

    def flops_per_token(self, config: Any, seq_len: int) -> float:
        """6 per weight of the blocks, 6 D V for each row that meets the head, and attention as a
        full square; all of it for each draw of noise."""
        width = config.model_dim
        blocks = config.num_layers * (4 + 2 * config.mlp_ratio) * width**2
        head = width * config.vocab_size * self.head_share(config)
        one_draw = 6 * (blocks + head) + 12 * config.num_layers * width * seq_len
        return float(config.train_draws * one_draw)


def inspect_levels(
    batches: Sequence[Batch],
    vocabulary: Vocabulary,
    names: Sequence[str],
    look: Callable[[Batch], tuple[Tensor, Tensor]],
    picture: Callable[[list[list[float]]], Curves],
) -> Inspection | None:
    """Terms of the bound, as means and by the level of noise; None where nothing is scored.

    Args:
        look: the levels of a batch's windows (B,) in [0, 1), and their nats (B, terms).
        picture: draws the means by part of the range of noise.
    """
    if not any(batch.num_scored for batch in batches):
        return None
    levels, nats = zip(*map(look, batches), strict=True)
    parts, means = by_level(batches, levels, nats)
    terms = dict(zip(names, means, strict=True))
    return Inspection(means_by_unit(terms, batches, vocabulary), (picture(parts),))


def with_masked_nats(
    found: Inspection | None,
    batches: Sequence[Batch],
    token_loss: Callable[[Batch], TokenLoss],
    time_of_noise: Callable[[Tensor], Tensor],
) -> Inspection | None:
    """What `inspect_levels` found, and `named_nats` of a model with masks."""
    if found is None:
        return None
    length = batches[0].window.shape[1] - 1
    nats = nats_by_count(batches, counts_to_name(length), token_loss, time_of_noise)
    return replace(found, metrics={**found.metrics, **named_nats(nats, length)})


def level_picture(title: str, x_label: str, names: Sequence[str]) -> Callable[..., Curves]:
    """A curve for every term over the level of noise."""
    return lambda parts: Curves(title, x_label, "nats per token", level_curves(names, parts))


def cpu_scored(batch: Batch) -> Tensor | None:
    """Which targets count, (B, T) on the CPU, where masks are drawn; None means all of them."""
    return None if batch.scored is None else batch.scored.cpu()
