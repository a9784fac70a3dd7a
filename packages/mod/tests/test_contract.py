import json
import os
import subprocess
import sys

import pytest
import torch

from nanozoo_core import checkpoint
from nanozoo_core.testing import ModelContract


class TestContract(ModelContract):
    model = "mod"
    tiny = {"num_layers": 2, "model_dim": 32, "num_heads": 2, "predictor_dim": 16}  # noqa: RUF012
    initial_loss_above_uniform = (-0.01, 0.01)  # the head starts near zero

    def num_parameters(self, config):
        dim, hidden = config.model_dim, config.predictor_dim
        control = 2 * config.vocab_size * dim + config.num_layers * 12 * dim**2
        routing = dim + dim * hidden + 2 * hidden + 1
        return control + len(config.routed_layers) * routing

    @pytest.mark.slow
    def test_sharded_training_calibrates_as_one_process_does(self, corpus, tmp_path):
        calibrated = {"model_cfg.predictor_threshold": "calibrated"}
        alone = self.run(self.overrides(corpus, tmp_path / "one", **calibrated))
        sharded = calibrated | {"distributed.strategy": "fsdp"}
        subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
                *("--standalone", "-m", "nanozoo_core.train"),
                *self.overrides(corpus, tmp_path / "two", **sharded),
            ],
            check=True,
            capture_output=True,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        runs = alone, tmp_path / "two"
        thresholds = [
            checkpoint.read_tensors(checkpoint.latest(run), "model")["blocks.1.threshold"]
            for run in runs
        ]
        assert thresholds[0] != 0
        torch.testing.assert_close(*thresholds, rtol=1e-3, atol=1e-4)
        scores = [json.loads((run / "result.json").read_text())["val_bpb"] for run in runs]
        torch.testing.assert_close(*scores, rtol=1e-4, atol=0)
        losses = [torch.tensor(self.losses(run)) for run in runs]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
