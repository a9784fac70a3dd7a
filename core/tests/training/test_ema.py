"""The average of the weights over a run, against the recurrence written out in float64."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nanozoo_core.config import compose_config, resolve
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.training import checkpoint
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.trainer import Trainer, train

DECAY = 0.999
STEPS = 14


def words(corpus: Path, folder: Path, *changes: str) -> list[str]:
    return [
        *("model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"),
        *("log.tensorboard=false", f"run_dir='{folder}'", f"train.ema={DECAY}"),
        *(f"train.max_steps={STEPS}", "eval.bytes=300", *changes),
    ]


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {n: p.detach().double().clone() for n, p in trainer.model.named_parameters()}


def test_the_average_is_that_of_its_recurrence(corpus: Path, tmp_path: Path) -> None:
    """After n updates m_n = d_n m_{n-1} + (1 - d_n) w_n with d_n = min(decay, n / (9 + n))."""
    trainer = Trainer(resolve(compose_config(words(corpus, tmp_path / "run"))), Ranks())
    expected = weights_of(trainer)
    for n in range(1, STEPS + 1):
        trainer.one_step()
        decay = min(DECAY, n / (9 + n))
        for name, weight in weights_of(trainer).items():
            expected[name] = decay * expected[name] + (1 - decay) * weight
    found = trainer.average.tensors()
    assert found.keys() == expected.keys()
    for name, mean in expected.items():
        torch.testing.assert_close(found[name].double(), mean, rtol=1e-5, atol=1e-7)


def test_the_decay_is_reached_and_kept(corpus: Path, tmp_path: Path) -> None:
    trainer = Trainer(resolve(compose_config(words(corpus, tmp_path / "run"))), Ranks())
    before = weights_of(trainer)
    trainer.one_step()
    after = weights_of(trainer)
    trainer.average.load({name: weight.float() for name, weight in before.items()})
    trainer.average.update(10**6)
    for name, mean in trainer.average.tensors().items():
        expected = DECAY * before[name] + (1 - DECAY) * after[name]
        torch.testing.assert_close(mean.double(), expected, rtol=1e-6, atol=1e-8)


def test_a_resumed_run_goes_on_with_the_ramp(corpus: Path, tmp_path: Path) -> None:
    def averages(folder: Path) -> dict[str, Tensor]:
        return checkpoint.read_tensors(RunFolder(folder).latest_checkpoint(), "ema")

    def run(name: str, *changes: str) -> Path:
        return train(resolve(compose_config(words(corpus, tmp_path / name, *changes)))).folder

    whole = run("whole")
    split = run("split", "train.stop_after=5")
    train(resolve(RunFolder(split).read_config() | {"resume": str(split)}))
    one, two = averages(whole), averages(split)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
