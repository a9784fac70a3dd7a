"""The contract kit on the plainest model there is, and the seeds that all noise hangs on."""

from __future__ import annotations

from typing import Any

import torch

from nanozoo_core.contract import Draw, Step, seeded_generator
from nanozoo_core.testing import ModelContract


class TestToyContract(ModelContract):
    model = "toy"
    tiny = {"num_layers": 2, "model_dim": 32, "num_heads": 2}  # noqa: RUF012

    def num_parameters(self, config: Any) -> int:
        return 2 * config.vocab_size * config.model_dim + 12 * config.num_layers * (
            config.model_dim**2
        )


def numbers(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


def test_generators_are_pure_functions_of_their_key() -> None:
    assert numbers(seeded_generator(1, 2)) == numbers(seeded_generator(1, 2))
    keys = [(1, 2), (2, 1), (1, 3), (1, 2, 0), (12,)]
    assert len({tuple(numbers(seeded_generator(*key))) for key in keys}) == len(keys)


def test_row_noise_does_not_depend_on_rank_or_micro_step() -> None:
    here = Step(number=3, progress=0.1, seed=0, rank=0, micro_step=2)
    there = Step(number=3, progress=0.1, seed=0, rank=5, micro_step=0)
    assert numbers(here.row_generator(7)) == numbers(there.row_generator(7))
    assert numbers(here.generator()) == numbers(there.generator())
    assert numbers(here.rank_generator()) != numbers(there.rank_generator())


def test_training_and_validation_noise_are_disjoint() -> None:
    step, draw = Step(number=0, progress=0.0, seed=0), Draw(seed=0, number=0)
    assert numbers(step.row_generator(0)) != numbers(draw.row_generator(0))
    assert numbers(step.generator()) != numbers(draw.generator())
