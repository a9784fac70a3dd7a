from typing import Any

import pytest
import torch

from nanozoo_core.testing import ModelContract
from nanozoo_core.testing.processes import train_in_processes


class TestContract(ModelContract):
    model = "mtm"
    tiny = {  # noqa: RUF012
        "num_layers": 2,
        "model_dim": 32,
        "num_heads": 2,
        "num_mtp_modules": 1,
    }
    initial_loss_above_uniform = (-0.01, 0.01)  # the output projection starts near zero

    def num_parameters(self, config: Any) -> int:
        dim = config.model_dim
        control = 2 * config.vocab_size * dim + config.num_layers * 12 * dim**2
        return control + config.num_mtp_modules * (12 * dim**2 + 2 * dim**2 + 3 * dim)

    @pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
    def test_two_processes_train_as_one(self, corpus, tmp_path, strategy):
        changes = {"model_cfg.num_mtp_modules": 2}
        alone = self.run(self.overrides(corpus, tmp_path / "one", **changes))
        changes |= {"distributed.strategy": strategy}
        overrides = self.overrides(corpus, tmp_path / "two", **changes)
        train_in_processes(overrides, log=tmp_path / "log", num_processes=2)
        one, two = self.losses(alone), self.losses(tmp_path / "two")
        assert len(one) == 8
        torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=1e-5, atol=0)
