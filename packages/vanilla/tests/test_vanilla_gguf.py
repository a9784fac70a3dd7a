"""What is written for llama.cpp is complete and reads back."""

import pytest

pytest.importorskip("gguf")

from nanozoo_core.testing.gguf_file import assert_refused, assert_written_whole

CASES = [
    {"preset": "v6", "num_heads": 2},
    {"preset": "custom", "qk_norm": False, "activation": "swiglu", "num_heads": 2},
    {"preset": "custom", "qk_norm": False, "num_heads": 2},
    {"preset": "custom", "activation": "swiglu", "num_heads": 2},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_file_is_complete(changes, tmp_path):
    assert_written_whole("vanilla", changes, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no architecture with a squared ReLU behind normalised queries"),
        ({"preset": "v4"}, "has no class in transformers"),
    ],
    ids=str,
)
def test_what_llama_cpp_has_not_is_refused(changes, message):
    assert_refused("vanilla", changes, message)
