from __future__ import annotations

from typing import Any

import torch

from nanozoo_core.testing import ModelContract, ToyVocabulary


class TestContract(ModelContract):
    model = "sedd"
    tiny = {  # noqa: RUF012
        "model_dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "cond_dim": 16,
        "sampling_steps": 8,
    }
    gradient_steps = 4  # zero head, then zero gates, then what lies behind them
    overfit_steps = 500
    overfit_copies = 16
    entropy_steps = 800
    entropy_windows = 64
    lr = 5e-3

    def num_parameters(self, config: Any) -> int:
        v, d, n, c = config.vocab_size, config.model_dim, config.num_layers, config.cond_dim
        backbone = (v + 1) * d + v * (d + 1) + n * (12 * d * d + 7 * d) + d
        conditioning = n * 6 * d * (c + 1) + 2 * d * (c + 1)
        return backbone + conditioning + 257 * c + c * c + c

    def test_a_change_leaves_earlier_predictions_untouched(self) -> None:
        """The model's own rule: every position sees every other, on both sides."""
        _, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model)
        tokens = self.random_tokens(self.toy_vocab, 2)
        place = self.seq_len // 2
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % self.toy_vocab
        sigma = torch.tensor([0.1, 2.0])
        with torch.no_grad():
            difference = (model(tokens, sigma) - model(changed, sigma)).abs().amax((0, 2))
        assert float(difference.min()) > 0

    def test_cached_decoding_equals_full_recomputation(self) -> None:
        """No cache outlives a change anywhere in a bidirectional window, so there is none; what
        is skipped instead are steps that change nothing (see test_generation)."""
