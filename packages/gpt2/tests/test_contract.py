from nanozoo_core.testing import ModelContract


class TestContract(ModelContract):
    model = "gpt2"
    tiny = {"num_layers": 2, "model_dim": 32, "num_heads": 2}  # noqa: RUF012

    def num_parameters(self, config):
        num_layers, _, dim = config.shape
        tables = config.vocab_size * dim + config.seq_len * dim
        return tables + num_layers * (12 * dim**2 + 13 * dim) + 2 * dim

    def test_dropout_resumes_with_the_same_bits(self, corpus, tmp_path):
        dropout = {"model_cfg.dropout": 0.2}
        whole = self.run(self.overrides(corpus, tmp_path / "whole", **dropout))
        stopping = dropout | {"train.stop_after": 3}
        half = self.run(self.overrides(corpus, tmp_path / "half", **stopping))
        self.resume(half)
        self.assert_same_end(whole, half)
