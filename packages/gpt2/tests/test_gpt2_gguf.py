"""What is written for llama.cpp is complete and reads back."""

import pytest

pytest.importorskip("gguf")

from nanozoo_core.testing.gguf_file import assert_refused, assert_written_whole

CASES = [
    {"num_heads": 2, "pad_vocab_to": 64},
    {"num_heads": 2, "tie_embeddings": False, "bias": False},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_file_is_complete(changes, tmp_path):
    assert_written_whole("gpt2", changes, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "gelu"}, "tanh form of GELU alone"),
    ],
    ids=str,
)
def test_what_llama_cpp_has_not_is_refused(changes, message):
    assert_refused("gpt2", changes, message)
