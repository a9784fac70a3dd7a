from nanozoo_core.testing import ModelContract


class TestContract(ModelContract):
    model = "moe"
    tiny = {  # noqa: RUF012
        "num_layers": 2,
        "model_dim": 32,
        "num_heads": 2,
        "num_experts": 4,
    }

    def num_parameters(self, config):
        dim, (experts, k), shared = config.model_dim, config.routed, config.num_shared_experts
        dense = 2 * 4 * dim * dim
        expert = 2 * dim * round(4 * dim / (k + shared) / 16) * 16
        mixture = (experts + shared) * expert + experts * dim
        num_mixtures = config.num_layers - config.first_k_dense
        mlps = config.first_k_dense * dense + num_mixtures * mixture
        return 2 * config.vocab_size * dim + config.num_layers * 4 * dim**2 + mlps
