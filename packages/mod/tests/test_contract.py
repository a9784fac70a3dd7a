import pytest
import torch

from nanozoo_core.testing import TINY, ModelContract
from nanozoo_core.training import checkpoint
from nanozoo_core.training.run_folder import RunFolder


class TestContract(ModelContract):
    model = "mod"
    tiny = TINY | {"predictor_dim": 16}
    key_forms = (
        {},
        {"router_type": "random", "predictor_dim": 32},
        {"capacity": 1.0, "predictor_dim": 32},
        {"causal_router": "router", "predictor_dim": 32},
        {"router_gate": "sigmoid"},
    )
    speed_keys = {"routed_impl": "the same tokens, gathered or masked"}  # noqa: RUF012
    own_roles = {"blocks.*.predictor_in": "vector"}  # noqa: RUF012
    initial_loss_above_uniform = (-0.01, 0.01)  # the head starts near zero

    def num_parameters(self, config):
        dim, hidden = config.model_dim, config.predictor_dim
        control = 2 * config.vocab_size * dim + config.num_layers * 12 * dim**2
        routing = dim + dim * hidden + 2 * hidden + 1
        return control + len(config.routed_layers) * routing

    @pytest.mark.slow
    def test_sharded_training_calibrates_as_one_process_does(self, corpus, tmp_path):
        calibrated = {"model_cfg.predictor_threshold": "calibrated"}
        runs = self.train_alone_and_together(corpus, tmp_path, "fsdp", **calibrated)
        thresholds = [
            checkpoint.read_tensors(RunFolder(run).latest_checkpoint(), "model")[
                "blocks.1.threshold"
            ]
            for run in runs
        ]
        assert thresholds[0] != 0
        torch.testing.assert_close(*thresholds, rtol=1e-3, atol=1e-4)
        scores = [RunFolder(run).read_result()["val_bpb"] for run in runs]
        torch.testing.assert_close(*scores, rtol=1e-4, atol=0)
