from nanozoo_core.testing import TINY, ModelContract


class TestContract(ModelContract):
    model = "nsa"
    tiny = TINY | {
        "sliding_window_size": 3,
        "compress_block_size": 4,
        "compress_stride": 2,
        "selection_block_size": 4,
        "num_selected_blocks": 3,
        "local_blocks": 1,
    }
    key_forms = (
        {},
        {"compress_mode": "mean"},
        {"compress_mode": "linear"},
        {"shared_kv": True},
        {"cmp_rope": "none"},
    )
    speed_keys = {"nsa_impl": "the same blocks, gathered or masked"}  # noqa: RUF012
    unmoved_keys = {  # noqa: RUF012
        "preset": "sets five sizes that are all given here, and contradicts them",
    }
    # Everything is read: blocks and windows of the kernels are then full ones.
    flops_cfg = {"sliding_window_size": 64, "num_selected_blocks": 16}  # noqa: RUF012
    own_roles = dict.fromkeys(
        (
            f"blocks.*.attention.{name}"
            for name in ("gate_weight", "compress_keys.positions", "compress_values.positions")
        ),
        "vector",
    )
    initial_loss_above_uniform = (-0.01, 0.01)  # the head starts near zero
    overfit_steps = 120
    entropy_steps = 160
    gradient_steps = 3  # the blocks' outputs start at zero, and so does the MLP of compression

    def num_parameters(self, config):
        dim, width, length = config.model_dim, config.head_dim, config.compress_block_size
        projections = 2 * dim**2 + 6 * config.num_kv_heads * width * dim
        hidden = int(config.compress_mlp_ratio * width)
        phi = length * width * (1 + hidden) + hidden + hidden * width + width
        gates = 3 * config.num_heads * (dim + 1)
        block = projections + 2 * phi + gates + 8 * dim**2
        return 2 * config.vocab_size * dim + config.num_layers * block
