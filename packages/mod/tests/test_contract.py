from nanozoo_core.testing import ModelContract


class TestContract(ModelContract):
    model = "mod"
    tiny = {"num_layers": 2, "model_dim": 32, "num_heads": 2, "predictor_dim": 16}  # noqa: RUF012

    def num_parameters(self, config):
        dim, hidden = config.model_dim, config.predictor_dim
        control = 2 * config.vocab_size * dim + config.num_layers * 12 * dim**2
        routing = dim + dim * hidden + 2 * hidden + 1
        return control + len(config.routed_layers) * routing
