"""A model that sees what it is to name is flagged, and its score is not believed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.probing.batches import Source
from nanozoo_core.probing.coding import ProbeVocabulary, Tokens
from nanozoo_core.probing.leaks import leak
from nanozoo_core.probing.tasks import TASKS
from nanozoo_core.probing.training import Learner


class LeakyModel(ControlModel):
    """Adds the embedding of the next token to each position where it reads a whole window."""

    def features(self, tokens: Tensor, cache: Any = None) -> Tensor:
        own = super().features(tokens, cache)
        return (
            own
            if cache is not None
            else own + 30 * F.pad(self.embedding(tokens)[:, 1:], (0, 0, 0, 1))
        )


class LeakyWithoutState(LeakyModel):
    """And keeps no state, so that decoding reads the text so far again."""

    init_cache = property()  # type: ignore[assignment]


def sentence(model_class: type, task_name: str = "copying") -> str | None:
    task = TASKS[task_name]()
    coding = Tokens(task.num_symbols)
    config = model_config("toy", seq_len=task.length, vocab_size=coding.size)
    adapter = DefaultModelAdapter(type(config), model_class)
    torch.manual_seed(0)
    model = adapter.build(config, ProbeVocabulary(coding))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    learner = Learner(adapter, config, model.eval(), torch.device("cpu"))
    return leak(learner, Source(task, coding, 0))


@pytest.mark.parametrize("model_class", [LeakyModel, LeakyWithoutState])
def test_a_model_that_reads_the_future_is_flagged(model_class: type) -> None:
    found = sentence(model_class)
    assert found is not None
    assert "reads the future" in found


@pytest.mark.parametrize("task", ["copying", "parity", "star"])
def test_an_honest_model_is_not(task: str) -> None:
    assert sentence(ControlModel, task) is None
