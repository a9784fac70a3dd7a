import pytest
import torch

from nanozoo_core.testing import TINY, ModelContract
from nanozoo_core.testing.processes import train_in_processes


class TestContract(ModelContract):
    model = "ngpt"
    tiny = TINY
    key_forms = ({}, {"qk_scale": "none"}, {"weight_norm": "reparam"})
    initial_loss_above_uniform = (-0.02, 0.06)  # logits have variance 1 / model_dim
    gradient_steps = 1  # nothing starts at zero
    bfloat16_perturbation = 0.3  # the steps of a block are short

    def num_parameters(self, config):
        dim, hidden = config.model_dim, config.mlp_dim
        block = 4 * dim**2 + 3 * dim * hidden + 3 * dim + 2 * hidden
        return 2 * config.vocab_size * dim + config.vocab_size + config.num_layers * block

    @pytest.mark.slow
    def test_sharded_training_equals_one_process(self, corpus, tmp_path):
        alone = self.run(self.overrides(corpus, tmp_path / "one"))
        sharded = {"distributed.strategy": "fsdp"}
        overrides = self.overrides(corpus, tmp_path / "two", **sharded)
        train_in_processes(overrides, log=tmp_path / "log", num_processes=2)
        one, two = self.losses(alone), self.losses(tmp_path / "two")
        torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=1e-5, atol=0)
