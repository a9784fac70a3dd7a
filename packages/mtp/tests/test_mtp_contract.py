from typing import Any

import pytest
import torch

from nanozoo_core.testing import ModelContract
from nanozoo_core.testing.multi_token import SHAPE


class TestContract(ModelContract):
    model = "mtp"
    tiny = SHAPE | {"num_layers": 3, "num_mtp_tokens": 2}
    key_forms = (
        {},
        {"head_type": "linear", "mtp_weight_schedule": "linear_to_next"},
        {"head_type": "shared", "mtp_weight_schedule": "linear_to_next"},
        {"num_mtp_tokens": 1},
    )
    key_values = {"mtp_loss_weights": [[1.0, 0.25], [0.5]]}  # noqa: RUF012
    speed_keys = {"head_backward": "the same gradients, kept or made again"}  # noqa: RUF012
    initial_loss_above_uniform = (-0.01, 0.01)  # the output projection starts near zero

    def num_parameters(self, config: Any) -> int:
        """The control's: heads are among the blocks."""
        dim = config.model_dim
        return 2 * config.vocab_size * dim + config.num_layers * 12 * dim**2

    @pytest.mark.parametrize(
        ("strategy", "way"),
        [
            ("ddp", "joint"),
            ("ddp", "sequential"),
            pytest.param("ddp", "checkpoint", marks=pytest.mark.slow),
            pytest.param("fsdp", "checkpoint", marks=pytest.mark.slow),
        ],
    )
    def test_two_processes_train_as_one(self, corpus, tmp_path, strategy, way):
        changes = {"model_cfg.head_backward": way}
        self.train_alone_and_together(corpus, tmp_path, strategy, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["checkpoint", "sequential"])
def test_other_ways_to_the_gradient_compile(way: str) -> None:
    from mtp_models import ADAPTER, build

    from nanozoo_core.testing.multi_token import STEP, random_batch
    from nanozoo_core.testing.training import gradients
    from nanozoo_core.training.distributed import LossModule

    model, batch = build(head_backward=way), random_batch()
    module = LossModule(model, ADAPTER)
    eager, _ = module(batch, STEP)
    expected = gradients(model, eager)
    compiled, _ = torch.compile(module)(batch, STEP)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    found = gradients(model, compiled)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
