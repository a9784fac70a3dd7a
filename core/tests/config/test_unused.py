"""Settings that nothing reads beside the others."""

from __future__ import annotations

import pytest

from nanozoo_core.config import model_config
from nanozoo_core.config.defaults import refuse_unused
from nanozoo_core.errors import ConfigError, Problems


def test_what_was_changed_to_no_effect_is_refused_with_what_leaves_it_so() -> None:
    """And what is as in the model's YAML, or null, is not."""
    config = model_config("toy", {"num_layers": 3, "mlp_ratio": 2})
    problems = Problems()
    unused = {"num_layers": "seq_len=32", "num_heads": "seq_len=32", "mlp_ratio": "vocab_size=9"}
    refuse_unused(problems, "toy", config, unused)
    with pytest.raises(ConfigError) as caught:
        problems.raise_if_any()
    assert caught.value.problems == [
        "model_cfg.num_layers=3 has no effect with model_cfg.seq_len=32; leave it out",
        "model_cfg.mlp_ratio=2.0 has no effect with model_cfg.vocab_size=9; leave it out",
    ]
