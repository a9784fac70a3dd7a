from nanozoo_core.testing import TINY, ModelContract
from nanozoo_core.testing.dropout import DropoutContract


class TestControl(ModelContract):
    model = "vanilla"
    tiny = TINY
    key_forms = (
        {},
        {"preset": "custom"},
        {"preset": "custom", "norm": "layer", "position": "learned", "bias": True},
        {"preset": "v0"},
    )
    unmoved_keys = {"allow_no_warmup": "permits a run that is refused without it"}  # noqa: RUF012
    decided_keys = {  # noqa: RUF012
        "scale_embedding": "beside norm_embedding it has no effect",
        "tie_embeddings": "embeddings of unit variance cannot be a head",
    }

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
    test_every_key_changes_something_or_is_refused = None  # v0 is one of the control's forms
    test_every_key_of_every_form_changes_something_or_is_refused = None

    def num_parameters(self, config):
        dim = config.model_dim
        return config.vocab_size * dim + config.num_layers * (12 * dim**2 + 9 * dim)
