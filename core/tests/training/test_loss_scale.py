"""Training in float16: what the loss scale does to gradients, runs and ranks."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nanozoo_core.config import OptimConfig, compose_config, from_defaults, resolve
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import ConfigError, NonFiniteError
from nanozoo_core.machine import device as devices
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.optim.build import OptimizerSet, build_optimizers
from nanozoo_core.optim.groups import default_roles, make_groups
from nanozoo_core.testing.processes import train_in_processes
from nanozoo_core.training import checkpoint, loss_scale
from nanozoo_core.training.loss_scale import LossScale
from nanozoo_core.training.run_folder import RunFolder, TrainState, read_state
from nanozoo_core.training.trainer import Trainer, train

CUDA = torch.device("cuda", 0)


def settings(corpus: Path, *changes: str) -> list[str]:
    return [
        *("model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"),
        *("log.tensorboard=false", "dtype=float16", *changes),
    ]


def make_trainer(corpus: Path, folder: Path, *changes: str) -> Trainer:
    words = settings(corpus, f"run_dir='{folder}'", *changes)
    return Trainer(resolve(compose_config(words)), Ranks())


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(folder).read_metrics() if "loss" in row]


# -- gradients ------------------------------------------------------------------------------------


def one_weight(state: TrainState) -> tuple[nn.Parameter, OptimizerSet, LossScale]:
    """A weight whose optimiser steps every other time, and its first gradient, 3."""
    net = nn.Linear(1, 1, bias=False)
    optim = from_defaults(OptimConfig, name="adamw", adamw={"every": 2})
    groups = make_groups(net, default_roles(net), optim)
    optimizers = build_optimizers(groups, optim, total_steps=4, device=torch.device("cpu"))
    net.weight.grad = torch.tensor([[3.0]])
    return net.weight, optimizers, LossScale(torch.float16, optimizers, state)


def test_a_gradient_that_waits_is_neither_scaled_nor_lost() -> None:
    state = TrainState("toy", loss_scale=8.0)
    weight, optimizers, scale = one_weight(state)
    scale.begin()
    assert weight.grad is None
    weight.grad = torch.tensor([[torch.inf]])
    scale.unscale()
    optimizers.clip(1.0)
    scale.fall()
    assert weight.grad is None
    weight.grad = torch.tensor([[2.0 * 4]])  # 2 of the loss times the scale of now
    scale.unscale()
    assert float(weight.grad) == 5


def test_the_scale_grows_after_enough_steps_without_overflow() -> None:
    state = TrainState("toy", loss_scale=8.0)
    _, _, scale = one_weight(state)
    for _ in range(loss_scale.GROWTH_STEPS - 1):
        scale.count()
    scale.fall()
    for _ in range(loss_scale.GROWTH_STEPS):
        assert state.loss_scale == 4
        scale.count()
    assert (state.loss_scale, state.steps_at_loss_scale) == (8, 0)


# -- runs -----------------------------------------------------------------------------------------


def test_split_run_equals_whole_run_over_growth_and_overflow(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale doubles after every other step, from where it soon overflows."""
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 2)
    changes = ("train.ema=0.5", "optim.adamw.every=2", "checkpoint.every=3")
    falls = []
    plain = LossScale.fall
    monkeypatch.setattr(LossScale, "fall", lambda self: falls.append(plain(self)))

    def begin(name: str, *more: str) -> Path:
        trainer = make_trainer(corpus, tmp_path / name, *changes, *more)
        trainer.state.loss_scale = 2.0**40
        trainer.run([])
        trainer.claim.release()
        return tmp_path / name

    whole = begin("whole")
    assert len(falls) > 20
    split = begin("split", "train.stop_after=3")
    train(resolve(RunFolder(split).read_config() | {"resume": str(split)}))
    ends = [RunFolder(folder).latest_checkpoint() for folder in (whole, split)]
    for stem in ("model", "optimizer", "ema"):
        one, two = (checkpoint.read_tensors(end, stem) for end in ends)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    states = [read_state(end) for end in ends]
    assert states[0].loss_scale == states[1].loss_scale
    assert states[0].steps_at_loss_scale == states[1].steps_at_loss_scale
    assert losses(whole) == losses(split)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_take_a_step_again_together(corpus: Path, tmp_path: Path, strategy: str) -> None:
    ends = []
    for name in ("one", "two"):
        trainer = make_trainer(corpus, tmp_path / name, "model_cfg.model_dim=32")
        folder = begun_with_a_large_scale(trainer)
        if name == "one":
            train(resolve(RunFolder(folder).read_config() | {"resume": str(folder)}))
        else:
            words = settings(corpus, "model_cfg.model_dim=32", f"resume='{folder}'")
            train_in_processes(
                [*words, f"distributed.strategy={strategy}"], log=tmp_path / "log", num_processes=2
            )
        ends.append(read_state(RunFolder(folder).latest_checkpoint()))
    assert ends[0].loss_scale == ends[1].loss_scale < 2.0**40
    found, expected = (torch.tensor(losses(tmp_path / name)) for name in ("two", "one"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def begun_with_a_large_scale(trainer: Trainer) -> Path:
    """Its folder, with a checkpoint after one step whose scale is far too large."""
    trainer.records.open(trainer.settings, resumed=None, is_trained=False, data=trainer.setup.data)
    trainer.one_step()
    trainer.state.loss_scale = 2.0**40
    trainer._save()
    trainer.records.close()
    trainer.claim.release()
    return trainer.folder.path


def poison(monkeypatch: pytest.MonkeyPatch, change: Any) -> list[int]:
    """Applies `change` to every loss; returns the steps at which a loss was asked for."""
    asked: list[int] = []
    plain = DefaultModelAdapter.training_loss

    def poisoned(self: Any, model: Any, batch: Any, step: Any) -> Any:
        asked.append(step.number)
        loss = plain(self, model, batch, step)
        return type(loss)(change(loss.value))

    monkeypatch.setattr(DefaultModelAdapter, "training_loss", poisoned)
    return asked


def with_endless_gradient(loss: torch.Tensor) -> torch.Tensor:
    loss.register_hook(lambda gradient: gradient * torch.inf)
    return loss


def test_gradients_that_no_scale_makes_finite_are_divergence(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = poison(monkeypatch, with_endless_gradient)
    trainer = make_trainer(corpus, tmp_path / "run")
    with pytest.raises(NonFiniteError, match=r"gradient norm is not finite.*float16 ends at 65504"):
        trainer.one_step()
    assert len(asked) == 17  # at 2^16, 2^15, .. 1
    assert trainer.state.step == 0


def test_a_loss_that_is_not_finite_is_divergence_at_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = poison(monkeypatch, lambda loss: loss * torch.inf)
    trainer = make_trainer(corpus, tmp_path / "run")
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 0"):
        trainer.one_step()
    assert len(asked) == 1


# -- machines -------------------------------------------------------------------------------------


def refuse(*_: Any, **__: Any) -> None:
    raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")


def idle(*_: Any, **__: Any) -> nullcontext[None]:
    return nullcontext()


@pytest.mark.parametrize(("name", "stand_in"), [("mm", refuse), ("autocast", idle)])
def test_a_machine_without_float16_says_what_to_do(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stand_in: Any
) -> None:
    """Where the product is not there, and where autocast warns and does nothing."""
    monkeypatch.setattr(torch, name, stand_in)
    with pytest.raises(ConfigError, match=r"dtype=float16 is beyond device=cpu .*=float32"):
        make_trainer(corpus, tmp_path / "run")


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16")])
def test_auto_takes_no_float16_on_older_gpus_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capability: tuple[int, int],
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    assert devices.resolve_dtype("auto", CUDA) == getattr(torch, expected)
    is_told = "Tesla T4 has no fast bfloat16, so dtype=auto is float32" in caplog.text
    assert is_told == (expected == "float32")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float16_trains_on_a_gpu_as_float32_does(corpus: Path, tmp_path: Path) -> None:
    found, expected = [], []
    for dtype, into in (("float16", found), ("float32", expected)):
        changes = ("device=cuda", f"dtype={dtype}", "compile=false")
        trainer = make_trainer(corpus, tmp_path / dtype, *changes)
        into += [row["loss"] for _ in range(4) if (row := trainer.one_step())]
        trainer.claim.release()
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=2e-3, atol=0)
