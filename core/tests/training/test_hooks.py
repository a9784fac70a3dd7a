"""What is called of an adapter, and when: by the trainer, and by the small trainings of tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nanozoo_core.config import compose_config, resolve
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.testing.training import train_on_batches
from nanozoo_core.training import setup
from nanozoo_core.training.trainer import Trainer

HOOKS = ("optimizer_groups", "before_step", "training_loss", "before_update", "after_step")


class Recorder(DefaultModelAdapter):
    """Notes which of its hooks is called, in order, and whether gradients are recorded."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls: list[tuple[str, bool]] = []

    def __getattribute__(self, name: str) -> Any:
        if name in HOOKS:
            self.calls.append((name, torch.is_grad_enabled()))
        return super().__getattribute__(name)


def test_tests_train_with_the_hooks_of_the_trainer(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = load_adapter("toy")
    recorder = Recorder(toy.config_class, toy.model_class)
    monkeypatch.setattr(setup, "load_adapter", lambda _name: recorder)
    words = ["model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"]
    words += [f"run_dir='{tmp_path / 'run'}'", "train.max_steps=2"]
    trainer = Trainer(resolve(compose_config(words)), Ranks())
    trainer.one_step()
    trainer.one_step()
    by_trainer = recorder.calls.copy()
    recorder.calls.clear()
    loader = trainer.setup.loader
    train_on_batches(recorder, trainer.model, [loader.batch(0), loader.batch(1)])
    assert recorder.calls == by_trainer
    assert [name for name, _ in by_trainer] == [HOOKS[0], *HOOKS[1:], *HOOKS[1:]]
