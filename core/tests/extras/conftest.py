"""What needs an optional dependency; `nox -s test-extras` installs them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanozoo_core.config import compose_config, model_config, training_config
from nanozoo_core.data.tokenizers import ByteTokenizer
from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.training.run_folder import TrainState
from nanozoo_core.training.runs import LoadedRun


@pytest.fixture
def run(tmp_path: Path) -> LoadedRun:
    """An untrained toy model of bytes, with a window of 32, as if it came from a run folder."""
    config = training_config(compose_config(["model=toy"]))
    vocabulary = ByteTokenizer()
    adapter = load_adapter("toy")
    model_cfg = model_config("toy", config.model_cfg, vocab_size=vocabulary.size)
    torch.manual_seed(0)
    model = adapter.build(model_cfg, vocabulary).eval()
    with torch.no_grad():  # the head starts at zero
        model.get_parameter("head.weight").normal_()
    state = TrainState(model="toy")
    return LoadedRun(
        tmp_path, config, model_cfg, state, adapter, model, vocabulary, torch.device("cpu")
    )
