from nanozoo_core.testing import ModelContract


class TestControl(ModelContract):
    model = "vanilla"
    tiny = {"num_layers": 2, "model_dim": 32, "num_heads": 2}  # noqa: RUF012

    def num_parameters(self, config):
        return 2 * config.vocab_size * config.model_dim + config.num_layers * 12 * 32**2
