"""Checks of a file for llama.cpp, for the packages that can write one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from nanozoo_core.config import compose, compose_config, model_config, training_config
from nanozoo_core.data.hf_tokenizer import byte_signs
from nanozoo_core.data.tokenizers import SEPARATOR, train_bpe
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.testing.laws import perturb
from nanozoo_core.training.gguf_export import export_gguf
from nanozoo_core.training.run_folder import TrainState
from nanozoo_core.training.runs import LoadedRun

# Listed for an architecture, and not there in a model that has none, as llama.cpp's own conversion
# leaves them out.
OPTIONAL = ("output", "rope_freqs", "attn_rot_embd", "ffn_gate_inp", "_exps")
TEXT = Path(compose.__file__).read_text(encoding="utf-8")


def written(model: str, changes: dict[str, Any], folder: Path) -> tuple[LoadedRun, Any]:
    """An untrained model over a byte-pair vocabulary, and the reader of its file."""
    vocabulary = train_bpe([TEXT], vocab_size=300)
    config = training_config(compose_config([f"model={model}", "data.seq_len=64"]))
    adapter = load_adapter(model)
    model_cfg = model_config(model, changes, seq_len=64, vocab_size=vocabulary.size)
    torch.manual_seed(0)
    network = perturb(adapter.build(model_cfg, vocabulary).eval(), 0.1)
    run = LoadedRun(
        *(folder / "run", config, model_cfg, TrainState(model=model), adapter, network),
        *(vocabulary, torch.device("cpu")),
    )
    export_gguf(run, folder / "gguf")
    return run, gguf.GGUFReader(folder / "gguf" / "model.gguf")


SMALL = {"num_layers": 2, "model_dim": 64}


def assert_written_whole(model: str, changes: dict[str, Any], folder: Path) -> None:
    """A small model's file is complete, and its card says how llama.cpp runs it."""
    run, reader = written(model, SMALL | changes, folder)
    assert_complete(run, reader)
    assert "llama-completion" in (folder / "gguf" / "README.md").read_text()


def assert_refused(model: str, changes: dict[str, Any], message: str) -> None:
    """A small model that llama.cpp has not is a sentence."""
    adapter = load_adapter(model)
    network = adapter.make_model(model_config(model, SMALL | changes, vocab_size=97))
    with pytest.raises(ConfigError, match=message):
        adapter.to_gguf(network)


def field(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def assert_complete(run: LoadedRun, reader: Any) -> None:
    """The file has the tensors that gguf lists for its architecture and no others, with the values
    and settings that the adapter gives, and a vocabulary of GPT-2's kind."""
    found = run.adapter.to_gguf(run.model)
    assert found is not None
    name = found.architecture
    architecture = next(a for a, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    assert field(reader, "general.architecture") == name
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    places = {text.removesuffix(".weight").removesuffix(".bias") for text in tensors}
    blocks = range(int(found.settings["block_count"]))
    listed = [gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[architecture]]
    assert places <= {text.format(bid=number) for text in listed for number in blocks}
    needed = [text for text in listed if not text.endswith(OPTIONAL)]
    assert {text.format(bid=number) for text in needed for number in blocks} <= places
    assert tensors.keys() == found.tensors.keys()
    for key, tensor in found.tensors.items():
        np.testing.assert_array_equal(tensors[key].data, tensor.detach().numpy(), err_msg=key)
    for key, value in found.settings.items():
        assert np.float32(field(reader, f"{name}.{key}")) == np.float32(value), key
    _assert_tokenizer(run, reader)


def _assert_tokenizer(run: LoadedRun, reader: Any) -> None:
    signs = byte_signs()
    assert field(reader, "tokenizer.ggml.model") == "gpt2"
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert tokens[run.vocabulary.separator] == SEPARATOR
    for token, id in run.vocabulary.ids().items():
        if isinstance(token, bytes):
            assert tokens[id] == "".join(signs[byte] for byte in token)
    joined = [pair.replace(" ", "") for pair in field(reader, "tokenizer.ggml.merges")]
    assert joined == [token for token in tokens[:-1] if len(token) > 1]
    kinds = field(reader, "tokenizer.ggml.token_type")
    special = [id for id, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL]
    assert special == [run.vocabulary.separator]
    assert field(reader, "tokenizer.ggml.bos_token_id") == run.vocabulary.separator
    assert field(reader, "tokenizer.ggml.add_bos_token") is True
