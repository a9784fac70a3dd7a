"""What a training says on the terminal."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from nanozoo_core.config import TrainingConfig
from nanozoo_core.errors import OutOfMemoryError, first_line
from nanozoo_core.evaluation.inspection import describe
from nanozoo_core.evaluation.score import Score
from nanozoo_core.machine.device import device_name, is_out_of_memory
from nanozoo_core.machine.terminal import harmless, has_bars, say
from nanozoo_core.training.budget import Budget
from nanozoo_core.training.finish import Finish
from nanozoo_core.training.plan import describe_batch, describe_time
from nanozoo_core.training.run_folder import RunFolder, TrainState
from nanozoo_core.training.setup import Setup


def introduce(setup: Setup, state: TrainState, groups: str, folder: RunFolder) -> None:
    """Says what is about to be trained, on what, and how. Args: groups: of the optimisers."""
    report, plan = setup.adapter.report(setup.model), setup.plan
    world_size = setup.ranks.world_size
    processes = f" x {world_size}" if world_size > 1 else ""
    verb = f"continuing at step {state.step}" if state.step else "writing to"
    chosen = () if setup.precision is None else (setup.precision.describe(),)
    notes = "".join(f"{note}\n" for note in (*chosen, *setup.notes))
    say(
        f"{setup.config.model}: {report['params'] / 1e6:.2f} M parameters on "
        f"{device_name(setup.device)}{processes}, {str(setup.dtype).removeprefix('torch.')}\n"
        f"{setup.data.summary()}\n"
        f"batch: {describe_batch(setup.loader.stage(state.step))}; "
        f"budget: {plan.budget.describe()}{_times_read(setup)}\n"
        f"{_sources(setup)}"
        f"{notes}{groups}\n"
        f"{verb} {folder}"
    )


def _times_read(setup: Setup) -> str:
    """How often the budget reads the text, where it is known in steps."""
    steps = setup.plan.budget.steps
    return "" if steps is None else f", {setup.loader.epochs(steps):.2g} epochs of the text"


def _sources(setup: Setup) -> str:
    """A line on how often the budget reads each source of a mixture, where it is in steps."""
    steps = setup.plan.budget.steps
    if steps is None or len(setup.data.parts) == 1:
        return ""
    epochs = setup.loader.epochs_of_sources(steps)
    return f"epochs: {', '.join(f'{name} {times:.2g}' for name, times in epochs.items())}\n"


class Progress:
    """How far a run is. On a terminal a bar, in steps, or in percent where seconds limit it;
    elsewhere a line for each row of metrics."""

    def __init__(self, model: str, budget: Budget, state: TrainState, *, is_shown: bool) -> None:
        self._budget, self._state, self._is_shown = budget, state, is_shown
        self._began, self._done_before = time.monotonic(), self._share()
        self._bar: tqdm[Any] = tqdm(
            total=budget.steps if budget.seconds is None else 100,
            initial=self._position(),
            desc=model,
            unit="step" if budget.seconds is None else "%",
            disable=not (is_shown and has_bars()),
            dynamic_ncols=True,
        )

    def _position(self) -> int:
        if self._budget.seconds is None:
            return self._state.step
        return round(100 * self._share())

    def _share(self) -> float:
        return self._budget.progress(self._state.step, self._state.seconds)

    def update(self, row: dict[str, Any] | None) -> None:
        """Shows the step just done, and its row of metrics where there is one."""
        if self._bar.disable:
            if row is not None and self._is_shown:
                say(self._line(row))
            return
        self._bar.update(self._position() - self._bar.n)
        if row is not None:
            self._bar.set_postfix_str(
                f"loss {row['loss']:.3f}, {row['train_bpb']:.3f} bpb, "
                f"{row['tokens_per_second']:,.0f} tok/s, epoch {row['epoch']:.2f}"
            )

    def _line(self, row: dict[str, Any]) -> str:
        share = self._share()
        elapsed = time.monotonic() - self._began
        left = elapsed * (1 - share) / (share - self._done_before)
        of = f"/{self._budget.steps}" if self._budget.seconds is None else f" ({share:.0%})"
        return (
            f"step {row['step']}{of}: loss {row['loss']:.3f}, {row['train_bpb']:.3f} bits per "
            f"byte, {row['tokens_per_second']:,.0f} tokens/s, epoch {row['epoch']:.2f}, "
            f"{describe_time(left)} left"
        )

    def close(self) -> None:
        self._bar.close()


def validation_bar(num_windows: int, *, is_shown: bool) -> tqdm[Any]:
    return tqdm(
        total=num_windows,
        desc="validating",
        leave=False,
        bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed}",
        disable=not (is_shown and has_bars()),
    )


def say_score(step: int, score: Score) -> None:
    of_each = ", ".join(f"{name} {bpb:.4f}" for name, bpb in score.sources.items())
    say(f"step {step}: validation {score} bits per byte" + (f" ({of_each})" if of_each else ""))


def say_stopped(step: int, received: int | None, folder: RunFolder, *, is_trained: bool) -> None:
    """Says why an unfinished run ended, and how to go on with it."""
    why = f"signal {signal.Signals(received).name}" if received else "train.stop_after"
    if is_trained:
        text = f"stopped by {why}; all {step} steps are trained and in the checkpoint, but the run"
        text += " has no result yet. Finish it with:"
    else:
        text = f"stopped at step {step} by {why}; checkpoint written. Continue with:"
    say(f"{text}\n  train resume={folder}")


@contextmanager
def told_out_of_memory(config: TrainingConfig) -> Iterator[None]:
    """Raises: OutOfMemoryError, which says what to lower, for any allocation that fails inside."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = config.train.micro_batch_tokens
        now = "null, the whole share of a process" if size is None else size
        raise OutOfMemoryError(
            f"out of memory; lower train.micro_batch_tokens (now {now}), which changes nothing but "
            f"the speed, or eval.batch_tokens (now {config.eval.batch_tokens}) if it was a "
            f"validation; where one window is too much, lower data.seq_len or the sizes of the "
            f"model ({first_line(error)})"
        ) from error


def say_saved(step: int, folder: RunFolder) -> None:
    """Says what an error, which is told after it, has left."""
    say(
        f"an error stops the run; step {step} is in a checkpoint. Continue with:\n"
        f"  train resume={folder}"
    )


def say_aborted(folder: RunFolder) -> None:
    """Says what is left of a run that did not wait for the end of its step."""
    if folder.has_checkpoint:
        newest = folder.latest_checkpoint().name
        kept = f"{newest} is its newest checkpoint. Continue with:\n  train resume={folder}"
    else:
        kept = f"it has no checkpoint yet. Its folder is {folder}"
    say(f"stopped at once by a second Ctrl-C; {kept}")


def how_to_go_on(folder: RunFolder) -> str:
    """With a run that an error has stopped, as the end of a sentence."""
    if folder.has_checkpoint:
        return f"then go on with: train resume={folder}"
    return "then give the same command again"


def say_farewell(model: str, state: TrainState, end: Finish, folder: RunFolder) -> None:
    """Says what a finished run reached, and where its files are."""
    say("\n" + harmless(folder.samples_text_path.read_text(encoding="utf-8").strip()))
    if end.inspection is not None:
        say("\n" + describe(end.inspection))
    score = end.score
    others = ", ".join(f"{name} {bpb:.3f}" for name, bpb in end.baselines.items())
    sign = "at most " if score.bound == "upper" else ""
    files = [folder.result_path, folder.metrics_path, folder.loss_picture_path]
    names = ", ".join(path.name for path in (*files, folder.samples_text_path))
    begun = folder.read_samples().prompt
    prompt = f" --prompt {shlex.quote(harmless(begun))}" if begun else ""
    say(
        f"\n{model}: {sign}{score.bits_per_byte:.4f} bits per byte on "
        f"{score.num_bytes:,} bytes (the same bytes compressed: {others})\n"
        f"{state.tokens:,} tokens ({end.result['epochs']:.2g} epochs) in {state.seconds:.0f} s, "
        f"{state.tokens / state.seconds:,.0f} tokens/s\n"
        f"all files are in {folder}: {names}, {folder.checkpoints_path.name}/\n"
        f"more text: nanozoo generate {shlex.quote(str(folder))}{prompt}"
    )
