"""One model at work: training steps as the trainer takes them, or texts as `nanozoo generate` draws
them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nanozoo_core.comparing.bench.parts import shares
from nanozoo_core.comparing.bench.request import Assignment
from nanozoo_core.config import ResolvedConfig, compose_config, resolve
from nanozoo_core.contract import SamplingSettings
from nanozoo_core.generation.text import draw_text
from nanozoo_core.machine import device as devices
from nanozoo_core.machine.process import tune_process
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.randomness import seeded_generator
from nanozoo_core.training import runs
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.setup import Setup, set_up
from nanozoo_core.training.trainer import Trainer

WARM_UP = 2  # pieces of work before the first that counts; the first one may compile


@dataclass(frozen=True)
class Facts:
    """What of a contestant stays the same over the rounds."""

    report: dict[str, float]
    """Of the adapter: params and others."""
    flops_per_token: float
    """Of training."""
    batch_tokens: int
    seq_len: int
    bytes_per_token: float
    tokenizer: str
    data_fingerprint: str
    device: str
    dtype: str
    peak_flops: float | None


@dataclass(frozen=True)
class Block:
    """Some pieces of work in a row: steps, or texts."""

    pieces: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class Contestant:
    """A model with its data, `setup`; `piece` is what it does again and again."""

    traced_pieces = 1

    def __init__(self, assignment: Assignment, setup: Setup) -> None:
        self.setup, self.device = setup, setup.device
        if assignment.run is not None:
            path = runs.find_checkpoint(RunFolder(assignment.run), "latest", setup.config)
            runs.read_weights(setup.model, path, setup.config)

    def facts(self) -> Facts:
        setup = self.setup
        stage = setup.plan.stages[0]
        return Facts(
            report=setup.adapter.report(setup.model),
            flops_per_token=setup.plan.flops_per_token[0],
            batch_tokens=stage.tokens,
            seq_len=stage.seq_len,
            bytes_per_token=setup.data.bytes_per_token,
            tokenizer=setup.data.vocabulary.name,
            data_fingerprint=setup.data.fingerprint,
            device=devices.device_name(self.device),
            dtype=str(setup.dtype).removeprefix("torch."),
            peak_flops=devices.peak_flops(self.device),
        )

    def piece(self) -> int:
        """Does one piece of work. Returns: its tokens."""
        raise NotImplementedError

    def block(self, seconds: float) -> Block:
        """Works for at least `seconds`, in whole pieces."""
        devices.synchronize(self.device)
        started = time.perf_counter()
        pieces = tokens = 0
        elapsed = 0.0
        while elapsed < seconds:
            tokens += self.piece()
            pieces += 1
            devices.synchronize(self.device)
            elapsed = time.perf_counter() - started
        return Block(pieces, tokens, elapsed)

    def profile(self, path: Path) -> dict[str, float]:
        """Writes what some pieces do as a Chrome trace, which ui.perfetto.dev opens.

        Returns: the shares of kinds of operations in the time of the device.
        """
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as profiler:
            for _ in range(self.traced_pieces):
                self.piece()
            devices.synchronize(self.device)
        profiler.export_chrome_trace(str(path))
        own = "self_cpu_time_total" if self.device.type == "cpu" else "self_device_time_total"
        return shares((found.key, getattr(found, own)) for found in profiler.key_averages())


class Training(Contestant):
    """Steps of the trainer: loading, loss, gradients, optimisers, and all that the model adds."""

    traced_pieces = 3

    def __init__(self, assignment: Assignment) -> None:
        self.trainer = Trainer(resolved_settings(assignment), Ranks())
        super().__init__(assignment, self.trainer.setup)

    def piece(self) -> int:
        trainer = self.trainer
        state = trainer.state
        if trainer.budget.is_spent(state.step + 1, state.seconds):
            state.step, state.seconds = 0, 0.0  # a run over again: another schedule costs the same
        before = state.tokens
        trainer.one_step()
        return state.tokens - before


class Decoding(Contestant):
    """One text at a time, from the separator on, in the precision that `nanozoo generate` has.

    There is no optimiser, whose state would count as the memory of decoding.
    """

    def __init__(self, assignment: Assignment) -> None:
        super().__init__(assignment, set_up(resolved_settings(assignment), Ranks()))
        setup = self.setup
        self.num_tokens = assignment.decode_tokens
        self.drawn = 0
        setup.model.eval()
        if assignment.run is None:  # as training ends, such as with mod's thresholds
            with torch.no_grad():
                setup.adapter.finalize(setup.model, setup.statistics_batches(0))

    @torch.no_grad()
    def piece(self) -> int:
        setup = self.setup
        settings = SamplingSettings(max_tokens=self.num_tokens, seed=self.drawn)
        generator = seeded_generator(self.drawn)
        self.drawn += 1
        prompt = [setup.data.vocabulary.separator]
        pieces = draw_text(setup.adapter, setup.model, prompt, settings, generator)
        return sum(map(len, pieces))


def resolved_settings(assignment: Assignment) -> ResolvedConfig:
    return resolve(compose_config(assignment.arguments, recipe=assignment.recipe))


KINDS: dict[str, Callable[[Assignment], Contestant]] = {"train": Training, "decode": Decoding}


def prepare(assignment: Assignment) -> Contestant:
    """A contestant that has warmed up."""
    tune_process()
    contestant = KINDS[assignment.task](assignment)
    for _ in range(WARM_UP):
        contestant.piece()
    return contestant
