import pytest
import torch

from nanozoo_core.testing import TINY, ModelContract
from nanozoo_core.training import checkpoint
from nanozoo_core.training.run_folder import RunFolder


class TestContract(ModelContract):
    model = "moe"
    tiny = TINY | {"num_experts": 4}
    flops_cfg = {"experts_impl": "loop"}  # noqa: RUF012 - grouped products are padded
    key_forms = (
        {},
        {"balance": "loss", "score_func": "softmax"},
        {"balance": "none"},
        {"num_experts": 1},
        {"preset": "moe_mixtral", "num_experts": None},
    )
    speed_keys = {"experts_impl": "the same products, grouped or not"}  # noqa: RUF012
    unmoved_keys = {"allow_untested": "permits a routing that is refused"}  # noqa: RUF012
    own_roles = {"blocks.*.mlp.router.weight": "vector"}  # noqa: RUF012

    def num_parameters(self, config):
        dim, (experts, k), shared = config.model_dim, config.routed, config.num_shared_experts
        dense = 2 * 4 * dim * dim
        expert = 2 * dim * round(4 * dim / (k + shared) / 16) * 16
        mixture = (experts + shared) * expert + experts * dim
        num_mixtures = config.num_layers - config.first_k_dense
        mlps = config.first_k_dense * dense + num_mixtures * mixture
        return 2 * config.vocab_size * dim + config.num_layers * 4 * dim**2 + mlps

    @pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
    def test_two_processes_train_as_one(self, corpus, tmp_path, strategy):
        """The same losses, and the same bias: it follows the loads of both ranks together."""
        runs = self.train_alone_and_together(corpus, tmp_path, strategy)
        key = "blocks.1.mlp.router.choice_bias"
        bias, same = (
            checkpoint.read_tensors(RunFolder(run).latest_checkpoint(), "model")[key]
            for run in runs
        )
        assert bias.abs().max() > 0.01
        assert torch.equal(bias, same)
