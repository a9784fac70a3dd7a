from __future__ import annotations

from typing import Any

from nanozoo_core.testing import ModelContract


class TestContract(ModelContract):
    model = "megabyte"
    tiny = {  # noqa: RUF012
        "patch_size": 2,
        "global_byte_dim": 16,
        "num_global_layers": 2,
        "num_global_heads": 2,
        "local_dim": 32,
        "num_local_layers": 1,
        "num_local_heads": 2,
    }
    toy_length = 4  # a multiple of the patch
    key_forms: Any = (
        {},
        {
            "pos_emb": "both",
            "tie_embeddings": True,
            "local_first_input": "prev_byte",
            "cross_patch": 1,
            "patch_conv": True,
        },
        {"use_first_input": False},
        {"pos_emb": "rope"},
    )
    unmoved_keys = {  # noqa: RUF012
        "preset": "sets sizes that are all given here, and is refused beside them",
        "local_backend": "its kernel needs a GPU, and has tests of its own",
    }
    initial_loss_above_uniform = (-0.1, 0.1)

    def num_parameters(self, config: Any) -> int:
        per_byte, local, width = 16, 32, 32
        stacks = 2 * 12 * width**2 + 12 * local**2
        tables = config.vocab_size * (per_byte + 2 * local) + config.seq_len * per_byte
        return stacks + tables + per_byte * local + width + local  # W_GL and the two pads


class TestAllOptions(ModelContract):
    """What depends on the options; the rest, such as two processes, the paper's form answers."""

    model = "megabyte"
    tiny = TestContract.tiny | {
        "pos_emb": "both",
        "tie_embeddings": True,
        "local_first_input": "prev_byte",
        "cross_patch": 1,
        "patch_conv": True,
    }
    toy_length = 4
    initial_loss_above_uniform = (-0.1, 0.1)

    test_every_key_changes_something_or_is_refused = None  # these are one of the paper's forms
    test_every_key_of_every_form_changes_something_or_is_refused = None
    test_two_processes_train_as_one = None
    test_needs_no_other_model = None
    test_split_run_equals_whole_run = None
    test_compiled_loss_agrees_with_eager = None
    test_a_known_source_is_approached_and_never_beaten = None

    def num_parameters(self, config: Any) -> int:
        per_byte, local, width = 16, 32, 32
        stacks = 2 * 12 * width**2 + 12 * local**2
        tables = config.vocab_size * (per_byte + local) + config.seq_len * per_byte
        return stacks + tables + per_byte * local + width + (3 + 5 + 7) * per_byte**2
