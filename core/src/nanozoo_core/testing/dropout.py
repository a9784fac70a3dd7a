"""The contract of a model that can drop activations in training."""

from __future__ import annotations

from pathlib import Path

from nanozoo_core.testing.contract_kit import ModelContract


class DropoutContract(ModelContract):
    def test_dropout_resumes_with_the_same_bits(self, corpus: Path, tmp_path: Path) -> None:
        dropout = {"model_cfg.dropout": 0.2}
        whole = self.run(self.overrides(corpus, tmp_path / "whole", **dropout))
        stopping = dropout | {"train.stop_after": 3}
        half = self.run(self.overrides(corpus, tmp_path / "half", **stopping))
        self.resume(half)
        self.assert_same_end(whole, half)
