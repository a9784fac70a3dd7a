from __future__ import annotations

from typing import Any

import torch

from nanozoo_core.contract import SamplingSettings, seeded_generator
from nanozoo_core.testing import ModelContract, ToyVocabulary


class TestContract(ModelContract):
    model = "mdl"
    tiny = {  # noqa: RUF012
        "model_dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "sampler": "ancestral_cache",
        "num_sampling_steps": 8,
    }
    gradient_steps = 3  # zero head, then zero output matrices, then what lies behind them
    overfit_steps = 500
    overfit_copies = 16
    entropy_steps = 600
    entropy_windows = 64
    lr = 5e-3

    def num_parameters(self, config: Any) -> int:
        v, d, n = config.vocab_size, config.model_dim, config.num_layers
        return (v + 1) * d + v * (d + 1) + n * (12 * d * d + 7 * d) + d

    def test_a_change_leaves_earlier_predictions_untouched(self) -> None:
        """The model's own rule: every position sees every other, on both sides."""
        _, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model)
        tokens = self.random_tokens(self.toy_vocab, 2)
        place = self.seq_len // 2
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % self.toy_vocab
        with torch.no_grad():
            difference = (model(tokens) - model(changed)).abs().amax((0, 2))
        assert float(difference.min()) > 0

    def test_cached_decoding_equals_full_recomputation(self) -> None:
        """No cache outlives a change anywhere in a bidirectional window; what is skipped are steps
        that change nothing."""
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model)
        window = [1, None, None, 3, None, None, None, 2]
        states = [
            list(adapter.denoise(model, window, settings, seeded_generator(4)))
            for settings in (
                SamplingSettings(num_steps=40),
                SamplingSettings(num_steps=40, use_cache=False),
            )
        ]
        assert states[0] == states[1]
