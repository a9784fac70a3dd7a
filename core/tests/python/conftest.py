"""A small run, trained once by `nanozoo_core.train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nanozoo_core
from nanozoo_core.training import finish


@pytest.fixture(scope="session")
def small(corpus: Path) -> dict[str, Any]:
    """Settings of a training that takes a second."""
    return {
        "device": "cpu",
        "data": {"corpus": "text", "path": corpus, "tokenizer": "bytes"},
        "train": {"max_steps": 3, "log_every": 1},
        "eval": {"bytes": 300},
        "log": {"tensorboard": False},
    }


@pytest.fixture(scope="session")
def trained(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> nanozoo_core.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr(finish, "SAMPLE_TOKENS", 2)
        folder = tmp_path_factory.mktemp("runs") / "mine"
        return nanozoo_core.train("toy", run_dir=folder, **small)


@pytest.fixture(scope="session")
def run(trained: nanozoo_core.Result) -> nanozoo_core.Run:
    return nanozoo_core.load_run(trained.folder, device="cpu")
