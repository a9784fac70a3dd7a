from nanozoo_core.testing import ModelContract


class TestMamba1(ModelContract):
    model = "mamba"
    tiny = {"num_layers": 2, "model_dim": 32, "d_state": 8}  # noqa: RUF012
    own_roles = dict.fromkeys(
        (f"blocks.*.mixer.{name}" for name in ("A_log", "x_proj.weight", "dt_proj.weight")),
        "vector",
    )
    initial_loss_above_uniform = (0.0, 0.25)

    def uncounted_flops(self, config, seq_len):
        """A scan's 9 operations per state and channel and the taps of the convolution are sums; of
        them torch sees the read-out by c, with its gradients and once more as it is recomputed."""
        inner, states = 64, 8
        forward = 9 * inner * states + 2 * inner * 4
        return 2 * (3 * forward - 4 * 2 * inner * states)

    def num_parameters(self, config):
        dim, inner, states, rank = 32, 64, 8, 2
        mixer = 3 * dim * inner + inner * (rank + 2 * states) + inner * (rank + 1)
        mixer += inner * (4 + 1) + inner * states + inner
        return 2 * (mixer + dim) + dim + config.vocab_size * dim


class TestMamba2(ModelContract):
    model = "mamba"
    tiny = {  # noqa: RUF012
        "variant": "mamba2", "num_layers": 2, "model_dim": 32, "d_state": 8, "head_dim": 16,
        "chunk_size": 16,
    }  # fmt: skip
    own_roles = {"blocks.*.mixer.dt_proj.weight": "vector"}  # noqa: RUF012
    initial_loss_above_uniform = (0.0, 0.25)

    def uncounted_flops(self, config, seq_len):
        """The convolutions of inner + 2 states channels and 4 taps are sums."""
        return 2 * 3 * 2 * (64 + 2 * 8) * 4

    def num_parameters(self, config):
        dim, inner, states, heads = 32, 64, 8, 4
        mixer = dim * (2 * inner + 2 * states + heads) + inner * dim
        mixer += (inner + 2 * states) * (4 + 1) + 3 * heads + inner
        return 2 * (mixer + dim) + dim + config.vocab_size * dim
