from __future__ import annotations

from pathlib import Path
from typing import Any

from nanozoo_core.testing import ModelContract
from nanozoo_core.testing.chunking import OWN_ROLES, PART_KEYS, SHAPE


class TestContract(ModelContract):
    model = "hnet"
    tiny = SHAPE
    own_roles = OWN_ROLES
    key_vocab = 258
    key_symbols = (32, 97, 98, 99, 100)  # words
    key_forms: Any = (
        {},
        {"chunking": "fixed"},
        {"chunking": "space"},
        {"tie_embeddings": True},
        {"lr_multipliers": [1.0, 0.5]},
        {"arch_layout": ["t1", ["T1"], "t1"]},
    )
    part_keys = PART_KEYS
    key_values = {"lr_multipliers": [[1.0, 0.5]]}  # noqa: RUF012
    speed_keys = {"ssm_cfg.chunk_size": "the same scan, by longer blocks"}  # noqa: RUF012
    unmoved_keys = {  # noqa: RUF012
        "seq_len": "only a check of data.seq_len",
        "preset": "released sizes, too large to train here",
    }
    decided_keys = {  # noqa: RUF012
        "num_compression_layers": "goes with num_main_layers alone, in place of a layout",
        "num_main_layers": "goes with num_compression_layers alone, in place of a layout",
    }
    flops_cfg = {"chunking": "fixed"}  # noqa: RUF012 - chunks as long as the formula takes them

    def uncounted_flops(self, config: Any, seq_len: int) -> float:
        """The convolutions of 80 channels and 4 taps of encoder and decoder are sums."""
        return 3.0 * 2 * 2 * 80 * 4

    def test_two_processes_train_as_one(self, corpus: Path, tmp_path: Path) -> None:
        """The ratio loss multiplies shares of the whole batch."""
        self.train_alone_and_together(corpus, tmp_path)

    def num_parameters(self, config: Any) -> int:
        outer, inner, hidden, states, channels = 32, 48, 64, 8, 64
        mixer = outer * (2 * channels + 2 * states) + outer * 4  # z, x, b, c and dt of 4 heads
        mixer += (channels + 2 * states) * 5 + 3 * 4 + channels + channels * outer
        outside = 2 * (mixer + 2 * outer)  # encoder and decoder, each with two norms
        routing = 2 * outer**2 + outer**2 + outer  # W_q, W_k; W_res and its bias
        main = 2 * (4 * inner**2 + 3 * inner * hidden + 2 * inner) + inner
        return outside + routing + main + (inner - outer) + 2 * config.vocab_size * outer
