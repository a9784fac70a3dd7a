"""Which types a run on a CPU takes, and what stays when the answer is no."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nanozoo_core.config.compose import compose_config
from nanozoo_core.config.resolved import resolve
from nanozoo_core.errors import ConfigError
from nanozoo_core.machine.device import resolve_dtype
from nanozoo_core.machine.environment import FORCED
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.training import cpu_precision
from nanozoo_core.training.cpu_precision import Choice, Measured, decide, forced
from nanozoo_core.training.precision_settings import undecided
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.trainer import Trainer

FAST = Measured(
    {"float32": 12.1, "bfloat16": 10.0},
    {"kernel": 3.0, "products": 1.0, "float32": 2.0},
    {"float32": 1.3, "bfloat16": 1.0},
)
SLOW = replace(FAST, step={"float32": 11.9, "bfloat16": 10.0})
CPU = torch.device("cpu")


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Measured]]:
    """What the next measurements find; each that is made is taken from it."""
    monkeypatch.delenv(FORCED)
    monkeypatch.setenv("NANOZOO_CACHE", str(tmp_path / "cache"))
    found: list[Measured] = []
    monkeypatch.setattr(cpu_precision, "measure", lambda *given, **named: found.pop(0))
    yield found
    assert not found


def words(corpus: Path, folder: Path, *changes: str) -> list[str]:
    return [
        *("model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"),
        *("data.tokenizer=bytes", "data.seq_len=16", "train.batch_tokens=64", "eval.bytes=500"),
        *("train.max_steps=4", "train.micro_batch_tokens=32", "log.tensorboard=false"),
        *(f"run_dir='{folder}'", *changes),
    ]


def make_trainer(corpus: Path, folder: Path, *changes: str) -> Trainer:
    return Trainer(resolve(compose_config(words(corpus, folder, *changes))), Ranks())


def go_on(folder: Path) -> Trainer:
    return Trainer(resolve(RunFolder(folder).read_config() | {"resume": str(folder)}), Ranks())


def weights(trainer: Trainer) -> list[Tensor]:
    return [each.detach().clone() for each in trainer.model.parameters()]


# -- the choice -----------------------------------------------------------------------------------


def test_bfloat16_must_be_worth_it_and_each_part_takes_its_own_best() -> None:
    assert FAST.speedup == pytest.approx(1.21)
    fast, slow = (decide(found, asked="auto") for found in (FAST, SLOW))
    assert (fast.dtype, fast.attention, fast.newton_schulz) == ("bfloat16", "products", "bfloat16")
    assert (slow.dtype, slow.attention, slow.newton_schulz) == ("float32", "kernel", "float32")
    asked = decide(replace(SLOW, newton_schulz={"float32": 1.1, "bfloat16": 1.0}), asked="bfloat16")
    assert (asked.dtype, asked.attention, asked.newton_schulz) == (
        "bfloat16",
        "products",
        "float32",
    )
    assert decide(replace(FAST, attention={}), asked="auto").attention == "kernel"


def test_the_environment_decides_without_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORCED, "float32")
    assert forced("auto").dtype == "float32"
    assert forced("bfloat16").dtype == "bfloat16"  # what a setting asks for it leaves
    monkeypatch.setenv(FORCED, "bfloat16")
    assert forced("auto").dtype == "bfloat16"
    monkeypatch.setenv(FORCED, "")
    assert forced("auto") is None
    monkeypatch.setenv(FORCED, "half")
    with pytest.raises(ConfigError, match=f"{FORCED}=half must be float32 or bfloat16"):
        forced("auto")


def test_a_run_says_and_keeps_what_was_chosen(
    corpus: Path, tmp_path: Path, probe: list[Measured], capsys: pytest.CaptureFixture[str]
) -> None:
    probe.append(FAST)
    trainer = make_trainer(corpus, tmp_path / "run", "train.stop_after=2")
    assert trainer.setup.dtype == torch.bfloat16
    assert trainer.setup.attention_form == "products"
    assert trainer.config.optim.muon.orth_dtype == "bfloat16"
    trainer.run([])
    said = capsys.readouterr()
    line = next(line for line in (said.out + said.err).splitlines() if "precision:" in line)
    assert "1.21 times as fast" in line
    assert "12.1 in float32, 10.0 in bfloat16" in line
    assert "products" in line
    trainer.claim.release()
    # The resumed run measures nothing: the fixture has nothing left to give.
    resumed = go_on(tmp_path / "run")
    assert resumed.setup.dtype == torch.bfloat16
    assert resumed.setup.attention_form == "products"
    resumed.run([])
    result = RunFolder(tmp_path / "run").read_result()
    assert result["dtype"] == "bfloat16"
    assert result["attention_form"] == "products"


def test_the_result_has_the_figures(corpus: Path, tmp_path: Path, probe: list[Measured]) -> None:
    probe.append(SLOW)
    make_trainer(corpus, tmp_path / "run").run([])
    assert RunFolder(tmp_path / "run").read_config()["dtype"] == "auto"
    result = RunFolder(tmp_path / "run").read_result()
    assert result["dtype"] == "float32"
    assert result["precision_measured"]["step"] == SLOW.step
    assert result["precision_measured"]["speedup"] == pytest.approx(1.19)


def test_where_bfloat16_is_slower_training_is_that_in_float32(
    corpus: Path, tmp_path: Path, probe: list[Measured]
) -> None:
    probe.append(SLOW)
    found = []
    for name, changes in {"auto": (), "asked": ("dtype=float32",)}.items():
        trainer = make_trainer(corpus, tmp_path / name, *changes)
        for _ in range(3):
            trainer.one_step()
        found.append(weights(trainer))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_a_run_begun_before_there_was_a_choice_goes_on_in_float32(
    corpus: Path, tmp_path: Path, probe: list[Measured]
) -> None:
    config = resolve(compose_config(words(corpus, tmp_path, "resume='x'"))).training
    chosen, choice = cpu_precision.choose(config, None, None, ranks=Ranks())  # type: ignore[arg-type]
    assert (chosen, choice) == (config, None)
    assert resolve_dtype(chosen.dtype, CPU) == torch.float32


def test_every_model_is_measured_once(corpus: Path, tmp_path: Path, probe: list[Measured]) -> None:
    probe.append(FAST)
    for name in ("one", "two"):
        assert make_trainer(corpus, tmp_path / name).setup.dtype == torch.bfloat16
    probe.append(SLOW)
    wider = make_trainer(corpus, tmp_path / "three", "train.batch_tokens=128")
    assert wider.setup.dtype == torch.float32
    for path in (cpu_precision.cache_root() / "precision").glob("*.json"):
        path.write_text("{")
    probe.append(SLOW)
    assert make_trainer(corpus, tmp_path / "four").setup.dtype == torch.float32


@pytest.mark.parametrize(
    ("environment", "asked", "expected"),
    [
        ("float32", "auto", Choice("float32", "kernel", "float32")),
        ("bfloat16", "auto", Choice("bfloat16", "products", "bfloat16")),
        ("float32", "bfloat16", Choice("bfloat16", "products", "bfloat16")),  # asked for
    ],
)
def test_what_the_environment_decides_holds_for_every_part(
    monkeypatch: pytest.MonkeyPatch, environment: str, asked: str, expected: Choice
) -> None:
    """Newton-Schulz in float32 would be a fifth of a step of 1024 tokens beside bfloat16."""
    monkeypatch.setenv(FORCED, environment)
    assert cpu_precision.forced(asked) == expected


def test_a_run_that_chose_has_the_settings_that_were_asked_for() -> None:
    def settings(dtype: str, form: str | None, orth: str) -> dict:
        forms = {} if form is None else {"attention_form": form}
        return {
            "dtype": dtype,
            **forms,
            "optim": {"lr": 1.0, "muon": {"lr": 0.1, "orth_dtype": orth}},
        }

    asked = settings("auto", "auto", "auto")
    assert undecided(settings("bfloat16", "products", "bfloat16"), asked) == asked
    assert undecided(settings("auto", None, "auto"), asked) == asked  # of an older version
    chosen = settings("bfloat16", "products", "bfloat16")
    assert undecided(chosen, asked, keys=("attention_form",))["dtype"] == "bfloat16"
    stored, given = (
        settings("bfloat16", "products", "float32"),
        settings("float32", "kernel", "bfloat16"),
    )
    assert undecided(stored, given) == stored


def test_measuring_changes_nothing_in_the_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FORCED)
    seen: list[Measured] = []

    def decide(found: Measured, *, asked: str) -> Choice:
        seen.append(found)
        return Choice("float32", "kernel", "float32", found)

    monkeypatch.setattr(cpu_precision, "decide", decide)
    found = []
    for name, changes in {"measured": (), "given": ("dtype=float32",)}.items():
        torch.manual_seed(1)
        trainer = make_trainer(corpus, tmp_path / name, *changes)
        for _ in range(3):
            trainer.one_step()
        found.append([*weights(trainer), torch.get_rng_state()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    (measured,) = seen
    times = [*measured.step.values(), *measured.newton_schulz.values()]
    assert len(times) == 4
    assert min(times) > 0


# -- what a step does with it ---------------------------------------------------------------------


class Casts(TorchDispatchMode):
    """Counts how often each parameter is cast to bfloat16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {p.data_ptr(): name for name, p in model.named_parameters() if p.ndim == 2}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.bfloat16:
            name = self.names.get(args[0].data_ptr())
            self.counts.update([name] if name else [])
        return func(*args, **kwargs)


def test_a_weight_is_cast_once_a_step(corpus: Path, tmp_path: Path) -> None:
    changes = ("dtype=bfloat16", "optim.muon.orth_dtype=float32")
    trainer = make_trainer(corpus, tmp_path / "run", *changes)
    assert trainer.setup.plan.stages[0].num_micro_steps == 2
    with Casts(trainer.model) as casts:
        trainer.one_step()
        assert set(casts.counts.values()) == {1}
        assert len(casts.counts) >= 3
        trainer.one_step()
    assert set(casts.counts.values()) == {2}


def test_a_split_run_is_the_whole_one_to_the_bit_in_bfloat16(corpus: Path, tmp_path: Path) -> None:
    whole = make_trainer(corpus, tmp_path / "whole", "dtype=bfloat16", "attention_form=products")
    whole.run([])
    first = make_trainer(corpus, tmp_path / "split", "dtype=bfloat16", "train.stop_after=2")
    first.run([])
    first.claim.release()
    second = go_on(tmp_path / "split")
    second.run([])
    assert all(torch.equal(*pair) for pair in zip(weights(whole), weights(second), strict=True))
    scores = [RunFolder(tmp_path / name).read_result()["val_bpb"] for name in ("whole", "split")]
    assert scores[0] == scores[1]
