"""The contract kit on the plainest model there is, and the seeds that all noise hangs on."""

from __future__ import annotations

from typing import Any

import torch

from nanozoo_core.contract import Batch, Draw, Step
from nanozoo_core.randomness import seeded_generator
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


def batch(lookahead: int, scored: torch.Tensor | None = None) -> Batch:
    """Two windows of 4 inputs; a document begins with token 14 in the first."""
    tokens = torch.arange(10, 20 + 2 * (lookahead - 1)).reshape(2, 4 + lookahead)
    documents = torch.zeros_like(tokens)
    documents[0, 4:] = 1
    return Batch(tokens, documents, torch.arange(2), 2, lookahead, scored)


def test_one_place_ahead_are_the_targets() -> None:
    tokens, counts = batch(1).ahead(1, across_documents=True)
    assert torch.equal(tokens, batch(1).targets)
    assert counts.all()


def test_what_lies_behind_the_window_or_a_document_does_not_count() -> None:
    tokens, counts = batch(1).ahead(2)
    assert tokens[:, :3].tolist() == [[12, 13, 14], [17, 18, 19]]
    assert counts.tolist() == [[True, True, False, False], [True, True, True, False]]
    _, across = batch(1).ahead(2, across_documents=True)
    assert across.tolist() == [[True, True, True, False]] * 2
    assert not batch(1).ahead(7)[1].any()


def test_lookahead_holds_the_tokens_behind_the_targets() -> None:
    tokens, counts = batch(3).ahead(3, across_documents=True)
    assert tokens.tolist() == [[13, 14, 15, 16], [20, 21, 22, 23]]
    assert counts.all()


def test_ahead_of_an_unscored_target_nothing_counts() -> None:
    scored = torch.tensor([[True, False, True, True]] * 2)
    _, counts = batch(3, scored).ahead(2, across_documents=True)
    assert torch.equal(counts, scored)
