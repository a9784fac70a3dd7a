"""What every model promises."""

from nanozoo_core.nn.accounting import recurrence_flops
from nanozoo_core.testing import ModelContract


class TestContract(ModelContract):
    model = "griffin"
    tiny = {  # noqa: RUF012 - a layer of each kind, and a window that texts reach past
        "num_layers": 3, "model_dim": 32, "num_heads": 2, "recurrent_dim": 32, "mlp_dim": 64,
        "window": 7, "num_gate_blocks": 2,
    }  # fmt: skip
    own_roles = dict.fromkeys(
        (f"blocks.*.mixer.lru.{gate}_gate.weight" for gate in ("recurrence", "input")), "vector"
    )
    # The published start ties the head to an embedding whose logits have variance 1: + 1/2, and
    # more since each token's own row answers to itself.
    initial_loss_above_uniform = (0.4, 1.2)
    gradient_steps = 1  # nothing starts at zero
    lr = 5e-3
    unmoved_keys = {"seq_len": "texts go on beyond it, whatever it is"}  # noqa: RUF012
    key_values = {"pattern": ["ra"]}  # noqa: RUF012 - which texts are legal its type does not say
    flops_cfg = {"window": 64}  # noqa: RUF012 - a query then meets every key that is counted

    def uncounted_flops(self, config, seq_len):
        """The recurrence and the taps of the convolution are sums."""
        return 2 * recurrence_flops(config.recurrent_dim, conv_kernel=config.conv_kernel)

    def num_parameters(self, config):
        d, r, m, blocks = 32, 32, 64, 2
        recurrent = 3 * d * r + (config.conv_kernel + 1) * r + 2 * (r * r // blocks + r) + r
        attention = 2 * d * d + 2 * d * config.head_dim
        mlps = 3 * (3 * d * m + 2 * d)
        return config.vocab_size * d + 2 * recurrent + attention + mlps + d
