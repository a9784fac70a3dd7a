"""The fused head of the raw scores: values and gradients against the reference."""

from __future__ import annotations

import torch

from nanozoo_core.testing.reduced_heads import ReducedHeadTests
from nanozoo_sedd.kernels import score_sums as module


class TestScoreSums(ReducedHeadTests):
    module = module
    reduction = module.SCORE_SUMS
    head = module.score_sums
    reference = module.score_sums_reference

    def test_the_own_entry_is_never_read(self) -> None:
        """Its logit may be anything: values stay to the last bit, and it gets no gradient."""
        inputs = self.make_inputs(6, 11, torch.float64, dim=11)
        inputs[1] = torch.eye(11, dtype=torch.float64)  # so that x holds the logits
        results = self.values_and_grads(module.score_sums, inputs)
        changed = [inputs[0].scatter(1, inputs[3][:, None], 50.0), *inputs[1:]]
        for found, expected in zip(
            self.values_and_grads(module.score_sums, changed), results, strict=True
        ):
            if found.shape != inputs[1].shape:  # the weight's gradient is a sum over x itself
                assert torch.equal(found, expected)
        assert float(results[3].gather(1, inputs[3][:, None]).abs().max()) == 0.0
