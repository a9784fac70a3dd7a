"""What the adapters of all diffusion models share, with a sampler that fills from the right."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nanozoo_core.config.diffusion import DiffusionConfig
from nanozoo_core.contract import SamplingSettings
from nanozoo_core.diffusion.model import DiffusionModel
from nanozoo_core.diffusion.unmasking import Holes
from nanozoo_core.diffusion_adapter import DiffusionAdapter, cpu_scored
from nanozoo_core.machine.precision import in_float64
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.sources import batch_of

VOCAB, LENGTH, WIDTH = 11, 6, 8


def config() -> DiffusionConfig:
    return DiffusionConfig(
        vocab_size=VOCAB,
        seq_len=LENGTH,
        model_dim=WIDTH,
        num_layers=2,
        num_heads=2,
        mlp_ratio=3,
        dropout=0.0,
        tie_embeddings=False,
        cond_dim=4,
        locality=1.0,
        train_noise_min=0.1,
        train_noise_max=0.6,
        train_draws=1,
        sar_chunk_size=None,
    )


class Masked(DiffusionModel):
    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config, num_input_ids=VOCAB + 1, time_conditioning=False)


class Unmasked(Masked):
    mask_id = None


class RightToLeft(DiffusionAdapter):
    """Puts the number of known tokens into the last hole."""

    def __init__(self, model_class: type[nn.Module]) -> None:
        super().__init__(DiffusionConfig, model_class)
        self.seen: list[Holes] = []

    def steps(self, model: nn.Module, holes: Holes) -> Iterator[Tensor]:
        self.seen.append(holes)
        assert not torch.is_grad_enabled()
        x, known = holes.x.clone(), holes.known.clone()
        while not bool(known.all()):
            place = int((~known[0]).nonzero()[-1])
            x[0, place] = int(known.sum())
            known[0, place] = True
            yield x.clone()


def denoised(model_class: type[nn.Module], window: list[int | None]):
    adapter = RightToLeft(model_class)
    settings, generator = SamplingSettings(top_k=3), seeded_generator(0)
    states = list(adapter.denoise(model_class(config()), window, settings, generator))
    for holes in adapter.seen:
        assert (holes.settings, holes.generator) == (settings, generator)
    return adapter.seen, states


def test_holes_are_masks_that_steps_replace():
    (holes,), states = denoised(Masked, [5, None, 7, None])
    assert holes.x.tolist() == [[5, VOCAB, 7, VOCAB]]
    assert holes.known.tolist() == [[True, False, True, False]]
    assert states == [[5, None, 7, 2], [5, 3, 7, 2]]


def test_holes_are_any_token_where_there_is_no_mask():
    (holes,), states = denoised(Unmasked, [5, None, 7, None])
    assert holes.x.tolist() == [[5, 0, 7, 0]]
    assert holes.known.tolist() == [[True, False, True, False]]
    assert states == [[5, 0, 7, 2], [5, 3, 7, 2]]


def test_window_without_holes_is_not_sampled():
    assert denoised(Masked, [5, 7]) == ([], [])


def test_score_is_an_upper_bound():
    assert RightToLeft(Masked).likelihood == "upper"


def test_flops_are_six_per_weight_and_row():
    """Two blocks of 4 D^2 for attention and 2 * 3 D^2 for the MLP, half of the rows through the
    head, and 12 D for each pair of positions."""
    blocks = 2 * (4 * WIDTH**2 + 2 * 3 * WIDTH**2)
    expected = 6 * blocks + 6 * VOCAB * WIDTH / 2 + 12 * 2 * WIDTH * LENGTH
    assert RightToLeft(Masked).flops_per_token(config(), LENGTH) == expected


def test_numbers_are_wide_and_on_the_cpu():
    batch = batch_of(torch.zeros(2, 5, dtype=torch.int64))
    assert cpu_scored(batch) is None
    assert in_float64(torch.ones(2)).dtype == torch.float64
