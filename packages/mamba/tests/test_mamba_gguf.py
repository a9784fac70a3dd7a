"""What is written for llama.cpp is complete and reads back."""

import pytest

pytest.importorskip("gguf")

from nanozoo_core.config import model_config
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.gguf_file import assert_complete, written

SMALL = {"num_layers": 2, "model_dim": 64}
CASES = [
    {},
    {"variant": "mamba2", "num_groups": 2, "tie_embeddings": False, "use_conv_bias": False},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_file_is_complete(changes, tmp_path):
    run, reader = written("mamba", SMALL | changes, tmp_path)
    assert_complete(run, reader)
    assert "llama-completion" in (tmp_path / "gguf" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_dim": 48}, "model_cfg.mlp_dim=48 is nothing"),
        ({"use_bias": True}, "model_cfg.use_bias=True is nothing"),
    ],
    ids=str,
)
def test_what_llama_cpp_has_not_is_refused(changes, message):
    adapter = load_adapter("mamba")
    model = adapter.make_model(model_config("mamba", SMALL | changes, vocab_size=97))
    with pytest.raises(ConfigError, match=message):
        adapter.to_gguf(model)
