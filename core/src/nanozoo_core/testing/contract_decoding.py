"""What the contract kit asks of decoding beyond a cache: texts in one batch, rounded weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.generation import decoding_dtype
from nanozoo_core.generation.autoregressive import autoregressive_rows
from nanozoo_core.generation.decoding_dtype import RoundedWeights, large_matrices
from nanozoo_core.machine.device import autocast
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.contract_parts import ContractPart
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary


class DecodingContract(ContractPart):
    """The part of `ModelContract` that writes."""

    toy_vocab: int
    bfloat16_perturbation: float
    bfloat16_tolerance: float

    def perturb(self, model: nn.Module, scale: float = 0.05) -> None:
        raise NotImplementedError

    def config(self, vocab_size: int) -> Any:
        raise NotImplementedError

    def train_on(
        self, adapter: DefaultModelAdapter, model: nn.Module, windows: Sequence[Tensor]
    ) -> None:
        raise NotImplementedError

    def nats(self, adapter: DefaultModelAdapter, model: nn.Module, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def test_texts_drawn_together_are_those_drawn_alone(self) -> None:
        """Each with random numbers of its own, and past the longest context. What a model may have
        kept of it does not hinder training."""
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        if adapter.can_denoise:
            pytest.skip("a model that denoises writes its texts one by one")
        self.perturb(model)
        model.eval()
        settings = SamplingSettings(max_tokens=self.seq_len + 4)

        def draw(*seeds: int) -> list[list[int]]:
            generators = [seeded_generator(seed) for seed in seeds]
            steps = autoregressive_rows(adapter, model, [1, 2, 3, 0, 1], settings, generators)
            return [list(row) for row in zip(*steps, strict=True)]

        together = draw(3, 5, 8)
        assert together == [*draw(3), *draw(5), *draw(8)]
        assert len({tuple(row) for row in together}) == 3
        config = self.config(self.toy_vocab)
        tokens = self.random_tokens(self.toy_vocab, 4, adapter=adapter, config=config)
        self.train_on(adapter, model, [tokens])

    def test_rounded_weights_move_scores_as_bfloat16_does(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And only while they are in."""
        monkeypatch.setattr(decoding_dtype, "LEAST_WEIGHTS", 1)
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model, self.bfloat16_perturbation)
        tokens = self.random_tokens(self.toy_vocab, 8)
        parameters = list(model.parameters())
        exact = self.nats(adapter, model, tokens)
        with RoundedWeights(model):
            rounded = self.nats(adapter, model, tokens)
        assert large_matrices(model)
        assert not torch.equal(rounded, exact)
        torch.testing.assert_close(rounded, exact, rtol=self.bfloat16_tolerance, atol=0)
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert torch.equal(self.nats(adapter, model, tokens), exact)

    def test_what_autocast_leaves_in_float32_is_not_rounded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A weight that is multiplied where autocast is off says `keeps_float32`."""
        monkeypatch.setattr(decoding_dtype, "LEAST_WEIGHTS", 1)
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        was_on: list[bool] = []

        def watched(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
            was_on.append(torch.is_autocast_enabled("cpu"))
            return F.linear(x, matrix.float(), bias)

        monkeypatch.setattr(decoding_dtype, "rounded_linear", watched)
        with RoundedWeights(model), autocast(torch.device("cpu"), torch.bfloat16):
            self.nats(adapter, model, self.random_tokens(self.toy_vocab, 2))
        assert all(was_on), "set `weight.keeps_float32 = True` on what needs float32"
