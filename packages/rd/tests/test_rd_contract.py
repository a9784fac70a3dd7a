from __future__ import annotations

from typing import Any

from nanozoo_core.testing import ModelContract


class TestContract(ModelContract):
    model = "rd"
    tiny = {  # noqa: RUF012
        "num_core_layers": 1,
        "model_dim": 32,
        "num_heads": 2,
        "mlp_dim": 64,
        "mean_recurrence": 2,
        "eval_recurrence": 2,
    }

    key_forms = (
        {},
        {"sampling": "fixed", "mean_recurrence": 3, "s0_mode_eval": "zero"},
        {"sampling": "uniform", "recurrence_curriculum": "linear"},
        {
            "kv_budget": 1,
            "exit_criterion": "kl",
            "exit_threshold": 0.03,
            "eval_recurrence": 4,
        },
    )
    speed_keys = {"checkpoint_core": "the same numbers, made again"}  # noqa: RUF012
    decided_keys = {"num_layers": "only a check of the sum of three others"}  # noqa: RUF012
    flops_steps = 32  # each at a depth of its own

    def num_parameters(self, config: Any) -> int:
        dim, hidden = config.model_dim, config.hidden_dim
        layers = config.num_prelude_layers + config.num_core_layers + config.num_coda_layers
        layer = 4 * dim**2 + 3 * dim * hidden + 4 * dim + 2 * dim  # four gains, two biases
        return layers * layer + 2 * dim**2 + dim + config.vocab_size * dim
