from typing import Any, ClassVar

from nanozoo_core.testing import ModelContract
from nanozoo_current_best_gpt.config import CurrentBestConfig


class TestContract(ModelContract):
    model = "current_best_gpt"
    # Everything is on: four kinds of layers, a skip over the one without attention, two gate MLPs,
    # two stages, and a head that leaves the embedding half-way.
    tiny: ClassVar[dict[str, Any]] = {
        "num_layers": 4,
        "model_dim": 32,
        "num_heads": 2,
        "bigram_rows": 64,
        "bigram_sign_rows": 16,
        "window_pattern": "SL-L",
        "windows": [[4, 8], [8, 24]],
        "dc_window": 5,
        "skip": [0, 2],
        "gate_dim": 8,
        "gate_split_layer": 2,
        "mudd_dim": 8,
        "untie_at": 0.5,
        "yarn": True,
    }
    key_forms = (
        {},
        {  # the shipped layers
            "window_pattern": "SLSL", "skip": None, "gate_split_layer": None, "untie_at": None,
            "yarn": False,
        },
        {  # constants in place of gates
            "mudd": False, "gates_per_token": False, "learned_gains": False, "qk_norm": False,
            "mudd_dim": 32, "gate_dim": 64, "gate_split_layer": None,
        },
        {  # everything off
            "smear": False, "bigram_rows": 0, "bigram_sign_rows": 1024, "x0_injection": False,
            "window_pattern": "SLSL", "paired_layers": [], "value_embed_layers": [],
            "xsa_layers": [], "attn_gate_layers": [], "dc_layers": [], "dc_window": 32,
            "key_offset": False, "shared_attention_input": False, "snapshot_layer": None,
            "skip": None, "mudd": False, "mudd_dim": 32, "backout": 0.0, "gate_dim": 64,
            "gate_split_layer": None, "softcap": None, "untie_at": None, "yarn": False,
            "stage_starts": [0.0], "windows": [[32, 40]],
        },
    )  # fmt: skip
    key_values: ClassVar[dict[str, Any]] = {
        "window_pattern": ["SL-S", "SSLL", "LLLL"],
        "skip": [[0, 2]],
        "windows": [[[2, 4]]],
        "softcap": [[23, 5, 7.5]],
    }
    unmoved_keys: ClassVar[dict[str, str]] = {
        "seq_len": "read only where a window is longer, past which texts are then cut",
        "prefix_weight": "needs tokens that begin others; test_cbg_prefix has such",
    }
    decided_keys: ClassVar[dict[str, str]] = {
        "snapshot_layer": "the shipped one may stay where nothing reads it",
    }
    # Windows beyond the text: a query then meets every key that is counted.
    flops_cfg: ClassVar[dict[str, Any]] = {
        "windows": [[64, 64], [64, 64]], "dc_window": 64, "paired_layers": [],
        "yarn": False,
    }  # fmt: skip
    own_roles: ClassVar[dict[str, str]] = dict.fromkeys(
        (
            "smear_gate", "early_gates.w1", "early_gates.w2", "late_gates.w1", "late_gates.w2",
            "blocks.*.attention.value_gate", "blocks.*.mix.w1", "blocks.*.mix.w2", "mix.w1",
            "mix.w2",
        ),
        "vector",
    ) | {"embedding.weight": "head"}  # fmt: skip

    def uncounted_flops(self, config: CurrentBestConfig, seq_len: int) -> float:
        """The mix over heads is computed over blocks of twice its window."""
        return -12.0 * len(config.dc_layers) * config.model_dim * config.dc_window

    def num_parameters(self, config: CurrentBestConfig) -> int:
        dim, heads, vocab = config.model_dim, config.num_heads, config.vocab_size
        attention = 3 * (4 * dim**2 + 2)
        mlps = 4 * 8 * dim**2
        lambdas = 3 * 4 + 1  # of the blocks before the last; of the skip
        value_gate = heads * 12  # of layer 1; the last block's is MUDD's
        lookups = (2 + 2 + 0) * vocab * dim + 64 * dim  # embedding and head, two tables, bigrams
        smear = 12 + 1
        # xsa 1, gate 1, x0 and bigram of 0 and 1; gate 3, skip, reading and writing of the mix
        early, late = 2 * heads + 4, 3 * heads + 1
        gates = sum(8 * dim + n * (8 + 1) for n in (early, late)) + 1
        # three sources of values and of the stream, two value gates, six lambdas; five sources
        mudd = sum(8 * dim + n * (8 + 1) for n in (3 + 3 + 2 + 6, 5))
        return attention + mlps + lambdas + value_gate + lookups + smear + gates + mudd
