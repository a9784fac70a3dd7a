from nanozoo_core.testing import TINY, ModelContract
from nanozoo_core.testing.dropout import DropoutContract


class TestControl(ModelContract):
    model = "vanilla"
    tiny = TINY

    def num_parameters(self, config):
        dim = config.model_dim
        return 2 * config.vocab_size * dim + config.num_layers * 12 * dim**2


class TestTheFormOf2017(DropoutContract):
    """What depends on the form; the rest, such as two processes, the control answers for both."""

    model = "vanilla"
    tiny = TestControl.tiny | {"preset": "v0"}
    initial_loss_above_uniform = (0.4, 0.75)  # logits of unit variance add 0.5
    lr = 3e-3

    test_two_processes_train_as_one = None
    test_needs_no_other_model = None

    def num_parameters(self, config):
        dim = config.model_dim
        return config.vocab_size * dim + config.num_layers * (12 * dim**2 + 9 * dim)
