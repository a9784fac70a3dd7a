"""What `nanozoo show` says a training will cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanozoo_core.config import compose_config, model_config, training_config
from nanozoo_core.contract import Batch, Loss, Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.evaluation import estimate


def toy_plan(*overrides: str) -> estimate.Plan:
    config = training_config(compose_config(["model=toy", *overrides]))
    adapter = load_adapter("toy")
    model_cfg = model_config("toy", config.model_cfg, seq_len=config.data.seq_len, vocab_size=258)
    return estimate.plan(config, adapter, model_cfg)


def test_the_plan_is_the_trainers() -> None:
    plan = toy_plan("train.max_steps=10", "train.micro_batch_tokens=64")
    assert (plan.steps, plan.tokens) == (10, 1280)
    adapter = load_adapter("toy")
    model_cfg = model_config("toy", {}, seq_len=32, vocab_size=258)
    assert plan.flops == 1280 * adapter.flops_per_token(model_cfg, 32)
    assert "4 windows of 32 tokens in 2 micro-steps" in plan.lines()[0]


def test_text_is_counted_in_the_tokenizers_tokens() -> None:
    limits = ("train.max_steps=null", "train.max_bytes=12800")
    assert toy_plan(*limits).steps == 100  # 128 bytes a step
    assert toy_plan(*limits, "data.tokenizer=bpe").steps == 25


def test_a_budget_of_seconds_leaves_the_steps_open() -> None:
    plan = toy_plan("train.max_steps=null", "train.max_seconds=5")
    assert plan.steps is None
    assert plan.lines()[1] == "budget: train.max_seconds alone"


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.2, "3 s"), (95, "1.6 min"), (5400, "1.5 h"), (180000, "2.1 days")]
)
def test_times_read_well(seconds: float, text: str) -> None:
    assert estimate.describe_time(seconds) == text


class Square(nn.Module):
    """Keeps its input's embedding (B, T, 8) for the square's gradient, and the indices."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(256, 8))


class SquareAdapter(DefaultModelAdapter):
    def training_loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        assert isinstance(model, Square)
        rows = model.table[batch.inputs]
        return Loss((rows * rows).sum())


def test_activations_are_what_the_gradient_needs() -> None:
    adapter = SquareAdapter(object, Square)
    kept = estimate.activation_bytes(
        adapter, Square(), seq_len=16, lookahead=1, dtype=torch.float32
    )
    # The rows in float32, once although used twice, and the batch's 17 indices.
    assert kept == 16 * 8 * 4 + 17 * 8
