from __future__ import annotations

from typing import Any

from ladder import LADDER

from nanozoo_core.testing import ModelContract
from nanozoo_core.testing.chunking import OWN_ROLES, PART_KEYS, SHAPE

NSA = {
    "compress_block_size": 2,
    "compress_stride": 1,
    "selection_block_size": 2,
    "sliding_window_size": 4,
}
"""Of blocks that a text of the tests fills."""


class TestContract(ModelContract):
    model = "hnet_x_nsa"
    bfloat16_tolerance = 1e-2  # rounding moves a boundary or a choice of blocks now and then
    tiny = SHAPE | {"nsa_cfg": {"num_selected_blocks": 2, "sliding_window_size": 4}}
    # Long texts are dear, and of most settings hnet's tests tell; the slow test has every form.
    test_every_key_changes_something_or_is_refused = None
    key_seq_len = 48
    key_vocab = 258
    key_symbols = (32, 97, 98, 99, 100)  # words
    key_forms: Any = (
        {"nsa_cfg": NSA | {"num_selected_blocks": 2}},
        {
            "chunking": "fixed",
            "chunk_pool": "mlp",
            "nsa_cfg": NSA | {"num_selected_blocks": 4},
        },
        {
            "arch_layout": ["T1", ["N1"], "t1"],
            "mlp_dim": [48, 64],
            "chunking": "fixed",
            "unpool": "mlp",
            "nsa_cfg": NSA | {"num_selected_blocks": 2},
        },
    )
    key_values = {  # noqa: RUF012
        "lr_multipliers": [[1.0, 0.5]],
        "arch_layout": [["m1", ["N1"], "m1"]],
    }
    part_keys = PART_KEYS
    unmoved_keys = {  # noqa: RUF012
        "seq_len": "only a check of data.seq_len",
        "preset": "released sizes, too large to train here",
        "ssm_cfg.chunk_size": "changes speed alone, as hnet's tests see",
    }
    decided_keys = {  # noqa: RUF012
        "num_compression_layers": "goes with num_main_layers alone, in place of a layout",
        "num_main_layers": "goes with num_compression_layers alone, in place of a layout",
        "num_inner_layers": "goes with the two others of the ladder alone",
        "num_ladder_levels": "goes with the two others of the ladder alone",
        "ladder_size": "goes with the two others of the ladder alone",
    }
    flops_cfg = {"chunking": "fixed"}  # noqa: RUF012 - chunks as long as the formula takes them
    entropy_steps = 150
    own_roles = OWN_ROLES | {
        "stage.inner.network.blocks.*.mixer.gate_weight": "vector",
        "stage.inner.network.blocks.*.mixer.compress_keys.positions": "vector",
        "stage.inner.network.blocks.*.mixer.compress_values.positions": "vector",
    }

    def uncounted_flops(self, config: Any, seq_len: int) -> float:
        """The convolutions of 80 channels and 4 taps of encoder and decoder are sums."""
        return 3.0 * 2 * 2 * 80 * 4

    def builds_on(self) -> tuple[str, ...]:
        return ("hnet", "nsa")

    def num_parameters(self, config: Any) -> int:
        outer, inner, hidden, states, channels = 32, 48, 64, 8, 64
        mixer = outer * (2 * channels + 2 * states) + outer * 4  # z, x, b, c and dt of 4 heads
        mixer += (channels + 2 * states) * 5 + 3 * 4 + channels + channels * outer
        outside = 2 * (mixer + 2 * outer)  # encoder and decoder, each with two norms
        routing = 2 * outer**2 + outer**2 + outer  # W_q, W_k; W_res and its bias
        head, block = 16, 4
        phi = block * head + 2 * head * block * head + 2 * head + 2 * head * head + head
        sparse = 2 * inner**2 + 6 * head * inner + 2 * phi + 3 * 3 * (inner + 1)  # one key head
        main = 2 * (sparse + 3 * inner * hidden + 2 * inner) + inner
        return outside + routing + main + (inner - outer) + 2 * config.vocab_size * outer


class TestLadder(ModelContract):
    """What depends on the chunking; the rest, such as two processes, the default answers."""

    model = "hnet_x_nsa"
    tiny = LADDER | {"nsa_cfg": {"num_selected_blocks": 2, "sliding_window_size": 4}}
    own_roles = {  # noqa: RUF012
        "stage.residual.weight": "head",
        "stage.inner.residual.weight": "head",
        "stage.pooling.positions": "vector",
        "stage.inner.pooling.positions": "vector",
        "stage.inner.inner.network.blocks.*.mixer.gate_weight": "vector",
        "stage.inner.inner.network.blocks.*.mixer.compress_keys.positions": "vector",
        "stage.inner.inner.network.blocks.*.mixer.compress_values.positions": "vector",
    }
    gradient_steps = 3  # V_2 and U_2 start at zero, and so do phi's outputs behind them

    test_every_key_changes_something_or_is_refused = None  # a layout of the same layers
    test_every_key_of_every_form_changes_something_or_is_refused = None
    test_two_processes_train_as_one = None
    test_needs_no_other_model = None
    test_split_run_equals_whole_run = None
    test_compiled_loss_agrees_with_eager = None
    test_flops_are_those_that_torch_counts = None  # test_pooling_counts_once_per_chunk does it
    test_a_known_source_is_approached_and_never_beaten = None

    def num_parameters(self, config: Any) -> int:
        dim, hidden, head, window, stride, block = 32, 48, 16, 4, 2, 4
        mlp = 3 * dim * hidden + 2 * dim  # with the two norms of a block
        dense = 4 * dim**2 + mlp
        phi = block * head + 2 * head * block * head + 2 * head + 2 * head * head + head
        sparse = 2 * dim**2 + 6 * head * dim + 2 * phi + 3 * 2 * (dim + 1) + mlp
        pool = window * dim + window * dim**2 + dim**2
        unpool = dim**2 + stride * dim**2
        level = 2 * (dense + dim) + dim**2 + dim + pool + unpool
        return 2 * level + sparse + dim + 2 * config.vocab_size * dim
