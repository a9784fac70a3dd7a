"""What is written for llama.cpp is complete and reads back."""

import pytest

pytest.importorskip("gguf")

from nanozoo_core.testing.gguf_file import assert_refused, assert_written_whole

CASES = [
    {},
    {"variant": "mamba2", "num_groups": 2, "tie_embeddings": False, "use_conv_bias": False},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_file_is_complete(changes, tmp_path):
    assert_written_whole("mamba", changes, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_dim": 48}, "model_cfg.mlp_dim=48 is nothing"),
        ({"use_bias": True}, "model_cfg.use_bias=True is nothing"),
    ],
    ids=str,
)
def test_what_llama_cpp_has_not_is_refused(changes, message):
    assert_refused("mamba", changes, message)
