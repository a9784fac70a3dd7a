from typing import Any

import pytest

from nanozoo_core.testing import ModelContract
from nanozoo_core.testing.multi_token import SHAPE


class TestContract(ModelContract):
    model = "mtm"
    tiny = SHAPE | {"num_layers": 2, "num_mtp_modules": 1}
    key_forms = (
        {},
        {"num_mtp_modules": 0, "spec_draft_tokens": 0},
        {"mtp_lambda_schedule": "step"},
        {"mtp_lambda_schedule": "constant"},
        {"mtp_block": "mlp"},
    )
    initial_loss_above_uniform = (-0.01, 0.01)  # the output projection starts near zero

    def num_parameters(self, config: Any) -> int:
        dim = config.model_dim
        control = 2 * config.vocab_size * dim + config.num_layers * 12 * dim**2
        return control + config.num_mtp_modules * (12 * dim**2 + 2 * dim**2 + 3 * dim)

    @pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
    def test_two_processes_train_as_one(self, corpus, tmp_path, strategy):
        changes = {"model_cfg.num_mtp_modules": 2}
        self.train_alone_and_together(corpus, tmp_path, strategy, **changes)
