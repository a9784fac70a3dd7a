from nanozoo_core.testing import ModelContract


class MambaContract(ModelContract):
    """What both variants say of their settings."""

    model = "mamba"
    key_values = {"A_init_range": [[1.0, 2.0]], "time_step_floor": [0.05]}  # noqa: RUF012
    speed_keys = {  # noqa: RUF012
        "scan_backend": "the same scan",
        "chunk_size": "the same scan, by longer blocks",
    }
    unmoved_keys = {  # noqa: RUF012
        "seq_len": "only a check of data.seq_len",
        "preset": "released sizes, too large to train here",
        "residual_in_fp32": "acts under bfloat16 alone",
    }


class TestMamba1(MambaContract):
    tiny = {"num_layers": 2, "model_dim": 32, "d_state": 8}  # noqa: RUF012
    key_forms = ({}, {"mlp_dim": 8}, {"variant": "mamba2", "head_dim": 16})
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


class TestMamba2(MambaContract):
    tiny = {  # noqa: RUF012
        "variant": "mamba2", "num_layers": 2, "model_dim": 32, "d_state": 8, "head_dim": 16,
        "chunk_size": 16,
    }  # fmt: skip
    test_every_key_of_every_form_changes_something_or_is_refused = None  # TestMamba1 has this form
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
