"""One training: a model learns a task with one seed and one rate, and is asked what it knows.

As a program, `python -m nanozoo_core.probing.member PLAN NUMBER`, it is one process of a probe.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanozoo_core.default_model_adapter import load_adapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.files import null_if_not_finite, read_json, write_json
from nanozoo_core.machine import device as devices
from nanozoo_core.machine.process import tune_process
from nanozoo_core.machine.terminal import reported_errors, say
from nanozoo_core.probing.batches import LossOn, Source
from nanozoo_core.probing.coding import coding_for
from nanozoo_core.probing.leaks import leak
from nanozoo_core.probing.scoring import Marks, fill_samples, guessed, read_samples
from nanozoo_core.probing.settings import Chosen, Form, compose
from nanozoo_core.probing.task import TUNING, Knob, Task
from nanozoo_core.probing.tasks import TASKS
from nanozoo_core.probing.training import Learner, Plan, train

TUNING_SAMPLES = 128
HOLE_TUNING_SAMPLES = 24  # of a model that fills holes, which is asked window by window
HOLE_SAMPLES = 320
HIDDEN_SHARE = 8
DEPTHS = (1, 2, 4, 8, 16, 32)  # iterations at which a model that chooses their number is asked
DEPTH_SAMPLES = 320


@dataclass(frozen=True)
class Member:
    """What one training is to be; JSON holds it between processes."""

    label: str
    model: str | None
    recipe: str | None
    overrides: tuple[str, ...]
    task: str
    knobs: dict[str, Knob]
    seed: int
    lr: float
    weight_decay: float
    coding: str
    loss: LossOn
    tokens: int
    """Of training, in whole steps."""
    seconds: float
    windows: int
    samples: int
    file: str
    """Where its result goes."""

    @property
    def path(self) -> Path:
        return Path(self.file)

    def beside(self, suffix: str) -> Path:
        """A file beside its result, such as the log of its process."""
        return self.path.with_suffix(f".{suffix}")

    @property
    def name(self) -> str:
        rates = f"lr {self.lr:g}, decay {self.weight_decay:g}"
        return f"{self.label}, {self.task}, seed {self.seed}, {rates}"

    def settings(self) -> dict[str, Any]:
        """All that decides the result."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "file"}

    def make_task(self) -> Task:
        return TASKS[self.task](**self.knobs)

    @property
    def chosen(self) -> Chosen:
        recipe = None if self.recipe is None else Path(self.recipe)
        return Chosen(self.model, recipe, self.overrides)

    def source(self) -> Source:
        """Raises: ConfigError."""
        task = self.make_task()
        by_bytes = self.chosen.reads_bytes
        coding = coding_for(task, self.coding, self.seed, reads_bytes=by_bytes)
        return Source(task, coding, self.seed)

    def steps(self, length: int) -> int:
        return max(1, self.tokens // (self.windows * length))

    def resolved(self, source: Source) -> Any:
        """The settings of its model. Raises: ConfigError."""
        form = Form(
            length=source.length,
            windows=self.windows,
            steps=self.steps(source.length),
            vocab_size=source.coding.size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            is_text=self.coding == "spell" or bool(source.task.symbol_bytes),
        )
        return compose(form, self.chosen)


def run(member: Member, *, tell: Callable[[str], object] = say) -> dict[str, Any]:
    """Trains and asks. Returns: what stands in the member's file.

    Raises: ConfigError, NonFiniteError.
    """
    source = member.source()
    tested = dataclasses.replace(source, task=source.task.tested())
    config = member.resolved(source)
    training = config.training
    adapter = load_adapter(training.model)
    plan = Plan(
        source=source,
        steps=member.steps(source.length),
        seconds=member.seconds,
        windows=member.windows,
        loss=member.loss,
        grad_clip=training.train.grad_clip,
    )
    device = devices.resolve_device(training.device)
    learner = Learner.fresh(adapter, config.model_cfg, plan, device)
    untrained = _quick_marks(learner, tested).accuracy
    learned = train(
        learner,
        plan,
        training.optim,
        accuracy=lambda: _quick_marks(learner, tested).accuracy,
        say=lambda text: tell(f"{member.name}: {text}"),
    )
    task = source.task
    guess = guessed(tested, member.samples)
    report = adapter.report(learner.model)
    return {
        "settings": member.settings(),
        "task": task.name,
        "task_number": task.number,
        "knobs": dataclasses.asdict(task),  # type: ignore[call-overload]
        "model": training.model,
        "family": adapter.family,
        "weights_without_embeddings": report["params_non_embedding"],
        "state_numbers": _state_numbers(report, source.length),
        "coding": source.coding.name,
        "length": source.length,
        "weight_decay": training.optim.weight_decay,
        "steps": learned.steps,
        "tokens": learned.steps * plan.batch_tokens,
        "seconds": learned.seconds,
        "ended_by_clock": learned.steps < plan.steps,
        "curve": [list(point) for point in learned.curve],
        "untrained": untrained,
        "tuning": learned.curve[-1][1],
        "headline": task.headline,
        "chance": _chance(task, guess),
        "guess": getattr(guess, task.headline),
        "guess_name": task.guess_name,
        "leak": leak(learner, tested),
        **_asked(learner, tested, member.samples),
    }


def _quick_marks(learner: Learner, source: Source) -> Marks:
    """Of a few samples that are no part of the test, told the true answers."""
    if learner.adapter.can_denoise:
        return fill_samples(learner, source, HOLE_TUNING_SAMPLES, at_once=False, split=TUNING)
    return read_samples(learner, source, TUNING_SAMPLES, free=False, split=TUNING)


def _chance(task: Task, guess: Marks) -> float:
    """Of the headline: answers drawn at random are all right with the product of their chances."""
    if task.headline != "exact":
        return task.chance
    alone = [task.chance ** len(sample) for sample in guess.right if sample]
    return sum(alone) / len(alone)


def _state_numbers(report: dict[str, float], length: int) -> float | None:
    """Numbers of four bytes in the decoding state behind the last symbol."""
    if "cache_bytes_per_token" not in report:
        return None
    found = report.get("state_bytes", 0.0) + length * report["cache_bytes_per_token"]
    return found / torch.float32.itemsize


def _asked(learner: Learner, source: Source, num_samples: int) -> dict[str, Any]:
    """Scores of the test in each way to ask, the one of the headline first."""
    task = source.task
    modes: dict[str, Any] = {}
    if learner.adapter.can_denoise:
        count = min(num_samples, HOLE_SAMPLES)
        ways = [("step by step", False, False), ("at once", True, False)]
        if task.one_step:
            ways.reverse()
        ways.append(("at once, right hidden", True, True))
        for name, at_once, hide_right in ways:
            asked = count // HIDDEN_SHARE if hide_right else count  # one window for each answer
            try:
                found = fill_samples(
                    learner, source, max(1, asked), at_once=at_once, hide_right=hide_right
                )
                modes[name] = _scores(found, task)
            except ConfigError as error:
                modes[name] = {"not_asked": str(error)}
    else:
        for name, free in (("free", True), ("teacher", False)):
            modes[name] = _scores(read_samples(learner, source, num_samples, free=free), task)
    mode = next(name for name, found in modes.items() if "not_asked" not in found)
    return {
        "mode": mode,
        "score": modes[mode][task.headline],
        "standard_error": modes[mode][f"{task.headline}_error"],
        "modes": modes,
        "beyond": _beyond(learner, source, num_samples),
        "by_depth": _by_depth(learner, source),
    }


def _scores(marks: Marks, task: Task) -> dict[str, Any]:
    return {
        "samples": len(marks.right),
        "accuracy": marks.accuracy,
        "accuracy_error": marks.standard_error(marks.accuracy),
        "exact": marks.exact,
        "exact_error": marks.standard_error(marks.exact),
        "first": marks.first,
        "first_error": marks.standard_error(marks.first),
        "group_name": task.group_name,
        "by_group": marks.by_group(),
    }


def _beyond(learner: Learner, source: Source, num_samples: int) -> dict[str, Any]:
    """The task's other lengths, or why the model cannot be asked there."""
    found: dict[str, Any] = {}
    limit = getattr(learner.model, "max_context", None)
    for name, task in source.task.tests_beyond().items():
        other = dataclasses.replace(source, task=task)
        if learner.adapter.can_denoise:
            found[name] = {"not_asked": "it fills windows of the length that it has learned"}
        elif limit is not None and other.length > limit:
            found[name] = {
                "not_asked": f"it reads at most {limit} tokens, and this has {other.length}"
            }
        else:
            count = min(num_samples, HOLE_SAMPLES)
            found[name] = _scores(read_samples(learner, other, count, free=True), task)
    return found


def _by_depth(learner: Learner, source: Source) -> dict[str, Any]:
    """The accuracy at each number of iterations, of a model that is told how many."""
    if learner.adapter.can_denoise or not learner.adapter.takes_steps:
        return {}
    found = {}
    for depth in DEPTHS:
        with learner.adapter.at_steps(learner.model, depth):
            marks = read_samples(learner, source, DEPTH_SAMPLES, free=False)
        found[str(depth)] = {"accuracy": marks.accuracy, "by_group": marks.by_group()}
    return found


def write_plan(path: Path, members: list[Member]) -> None:
    """Raises: WriteError."""
    write_json(path, [dataclasses.asdict(member) for member in members])


def read_member(path: Path, number: int) -> Member:
    """One of a plan. Raises: CheckpointError."""

    def member(rows: list[dict[str, Any]]) -> Member:
        return Member(**rows[number] | {"overrides": tuple(rows[number]["overrides"])})

    return read_json(path, member, remedy="give the command of the probe again")


def main(plan: Path, number: int) -> None:
    with reported_errors():
        member = read_member(plan, number)
        tune_process()
        found = run(member)
        write_json(member.path, null_if_not_finite(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
