"""The contract of diffusion models.

V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from nanozoo_core.contract import SamplingSettings
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.testing.contract_kit import ModelContract
from nanozoo_core.testing.diffusion.models import watch
from nanozoo_core.testing.toy_vocabulary import ToyVocabulary


class DiffusionContract(ModelContract):
    """The contract of a model that sees a text from both sides."""

    gradient_steps = 4  # zero head, then zero gates, then what lies behind them
    overfit_steps = 500
    overfit_copies = 16
    entropy_steps = 800
    entropy_windows = 64
    lr = 5e-3
    many_steps = 32  # of a window with few holes, so that most steps lift no mask
    flops_steps = 8  # each with as many masks as its level of noise brings
    noise_levels: tuple[float, float]  # of two windows, as the model's forward pass takes them

    def is_told_the_noise(self, config: Any) -> bool:
        """Whether the network has a time embedding and adaLN."""
        return config.knows_time

    def num_parameters(self, config: Any) -> int:
        v, d, n, c = config.vocab_size, config.model_dim, config.num_layers, config.cond_dim
        head = v if config.tie_embeddings else v * (d + 1)
        count = (v + 1) * d + head + n * (12 * d * d + 7 * d) + d
        if self.is_told_the_noise(config):
            count += n * 6 * d * (c + 1) + 2 * d * (c + 1) + 257 * c + c * c + c
        return count

    def test_a_change_leaves_earlier_predictions_untouched(self) -> None:
        """The model's own rule: every position sees every other, on both sides."""
        _, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model)
        tokens = self.random_tokens(self.toy_vocab, 2)
        place = self.seq_len // 2
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % self.toy_vocab
        levels = torch.tensor(self.noise_levels)
        with torch.no_grad():
            difference = (model(tokens, levels) - model(changed, levels)).abs().amax((0, 2))
        assert float(difference.min()) > 0

    def test_cached_decoding_equals_full_recomputation(self) -> None:
        """No cache outlives a change anywhere in a bidirectional window, so there is none; what is
        skipped instead are steps that change nothing."""
        adapter, model = self.build(ToyVocabulary(self.toy_vocab))
        self.perturb(model)
        model.eval()
        window = [1, None, None, 3, None, None, None, 2]
        runs = watch(model)
        states, counts = [], []
        for use_cache in (True, False):
            runs.clear()
            settings = SamplingSettings(num_steps=self.many_steps, use_cache=use_cache)
            states.append(list(adapter.denoise(model, window, settings, seeded_generator(4))))
            counts.append(len(runs))
        assert states[0] == states[1]
        assert None not in states[0][-1]
        assert 1 <= counts[0] <= window.count(None)
        assert counts[1] > 3 * window.count(None)
