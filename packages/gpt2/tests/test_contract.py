from nanozoo_core.testing import TINY
from nanozoo_core.testing.dropout import DropoutContract


class TestContract(DropoutContract):
    model = "gpt2"
    tiny = TINY
    unmoved_keys = {"preset": "released sizes, too large to train here"}  # noqa: RUF012

    def num_parameters(self, config):
        num_layers, _, dim = config.shape
        tables = config.vocab_size * dim + config.seq_len * dim
        return tables + num_layers * (12 * dim**2 + 13 * dim) + 2 * dim
