"""What a run will do, and what `nanozoo show` says that it will cost."""

from __future__ import annotations

import pytest

from nanozoo_core.config import TrainingConfig, compose_config, model_config, training_config
from nanozoo_core.contract import DataPlan, DataStage
from nanozoo_core.data.loader import BatchStage
from nanozoo_core.default_model_adapter import DefaultModelAdapter, load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.training.plan import RunPlan, describe_time, plan_run, usual_bytes_per_token


def toy_plan(
    *overrides: str,
    world_size: int = 1,
    adapter_class: type[DefaultModelAdapter] = DefaultModelAdapter,
) -> RunPlan:
    config = training_config(compose_config(["model=toy", *overrides]))
    toy = load_adapter("toy")
    adapter = adapter_class(toy.config_class, toy.model_class)
    model_cfg = model_config("toy", config.model_cfg, seq_len=config.data.seq_len, vocab_size=258)
    bytes_per_token = usual_bytes_per_token(config.data.tokenizer)
    return plan_run(
        config, adapter, model_cfg, bytes_per_token=bytes_per_token, world_size=world_size
    )


def test_the_plan_is_the_trainers() -> None:
    plan = toy_plan("train.max_steps=10", "train.micro_batch_tokens=64")
    assert (plan.budget.steps, plan.tokens) == (10, 1280)
    adapter = load_adapter("toy")
    model_cfg = model_config("toy", {}, seq_len=32, vocab_size=258)
    assert plan.flops == 1280 * adapter.flops_per_token(model_cfg, 32)
    assert "4 windows of 32 tokens in 2 micro-steps" in plan.describe()[0]


def test_text_is_counted_in_the_tokenizers_tokens() -> None:
    limits = ("train.max_steps=null", "train.max_bytes=12800")
    assert toy_plan(*limits).budget.steps == 100  # 128 bytes a step
    assert toy_plan(*limits, "data.tokenizer=bpe").budget.steps == 25


def test_a_budget_of_seconds_leaves_the_steps_open() -> None:
    plan = toy_plan("train.max_steps=null", "train.max_seconds=5")
    assert plan.budget.steps is None
    assert plan.describe()[1] == "budget: train.max_seconds alone"


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.2, "3 s"), (95, "1.6 min"), (5400, "1.5 h"), (180000, "2.1 days")]
)
def test_times_read_well(seconds: float, text: str) -> None:
    assert describe_time(seconds) == text


def test_a_batch_is_split_into_equal_micro_steps_of_every_process() -> None:
    plan = toy_plan("train.batch_tokens=384", "train.micro_batch_tokens=160", world_size=2)
    (stage,) = plan.stages
    assert (stage.batch_windows, stage.seq_len, stage.num_micro_steps) == (12, 32, 2)
    assert plan.micro_windows(stage) == 3


@pytest.mark.parametrize(
    ("overrides", "world_size", "message"),
    [
        (["train.batch_tokens=20"], 1, "less than one window of data.seq_len=32"),
        (["train.batch_tokens=96"], 2, "do not divide over 2 processes; use a multiple of 64"),
        (["train.micro_batch_tokens=20"], 1, "train.micro_batch_tokens=20 is less than one window"),
    ],
)
def test_a_batch_that_cannot_be_split_is_refused(
    overrides: list[str], world_size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        toy_plan(*overrides, world_size=world_size)


class Growing(DefaultModelAdapter):
    """Twice the batch and the window from the middle on."""

    def data_plan(self, config: object, training: TrainingConfig) -> DataPlan:
        return DataPlan((DataStage(0.0, 128, 32), DataStage(0.5, 256, 64)))


def test_stages_begin_at_their_share_of_the_steps() -> None:
    plan = toy_plan("train.max_steps=10", adapter_class=Growing)
    assert plan.stages == (BatchStage(0, 4, 32), BatchStage(5, 4, 64))
    assert plan.tokens == 5 * 128 + 5 * 256


def test_stages_need_a_budget_in_steps() -> None:
    with pytest.raises(ConfigError, match=r"a budget of train\.max_seconds leaves undecided"):
        toy_plan("train.max_seconds=5", adapter_class=Growing)
