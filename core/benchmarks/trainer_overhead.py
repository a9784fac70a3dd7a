"""What the trainer adds to a bare training step, and what the loader takes of it.

    uv run python core/benchmarks/trainer_overhead.py [--model gpt2] [key=value ...]

Trainer and bare loop share one model and its optimisers in one process and alternate; times are the
CPU seconds of one thread. The bare step is loss, gradients, clipping, optimisers and zero_grad on a
batch at hand. Prints a table and writes JSON where --json says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nanozoo_core.config import compose_config, resolve
from nanozoo_core.contract import Batch, Step
from nanozoo_core.likelihood import target_bytes
from nanozoo_core.machine.process import tune_process
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.training.trainer import Trainer


def bare_step(trainer: Trainer, batch: Batch, number: int) -> None:
    step = Step(number=number, progress=0.5, seed=0)
    trainer.adapter.training_loss(trainer.model, batch, step).value.backward()
    trainer.optimizers.clip(1.0)
    trainer.optimizers.step()
    trainer.optimizers.zero_grad()


def cpu_seconds(action: Callable[[], object], repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        action()
    return (time.process_time() - started) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="per round and contestant")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    tune_process()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"model={arguments.model}", "device=cpu", f"run_dir='{folder}/run'"]
        overrides += ["train.max_steps=100000", *arguments.overrides]
        trainer = Trainer(resolve(compose_config(overrides)), Ranks())
        loader, vocabulary = trainer.setup.loader, trainer.setup.data.vocabulary
        batch = loader.batch(0)
        assert loader.stages[0].num_micro_steps == 1, "one micro-step keeps the comparison plain"
        for number in range(3):
            bare_step(trainer, batch, number)
            trainer.one_step()
        ratios, steps, loads = [], [], []
        for _ in range(arguments.rounds):
            bare = cpu_seconds(lambda: bare_step(trainer, batch, 3), arguments.steps)
            full = cpu_seconds(trainer.one_step, arguments.steps)
            load = cpu_seconds(
                lambda: target_bytes(loader.batch(7), vocabulary),
                arguments.steps,
            )
            ratios.append(full / bare)
            steps.append(bare)
            loads.append(load / bare)
    result = {
        "model": arguments.model,
        "bare_step_seconds": statistics.median(steps),
        "trainer_over_bare": statistics.median(ratios),
        "trainer_over_bare_range": [min(ratios), max(ratios)],
        "loader_share": statistics.median(loads),
        "torch": torch.__version__,
    }
    print(
        f"bare step {result['bare_step_seconds'] * 1e3:.1f} ms; trainer / bare "
        f"{result['trainer_over_bare']:.3f} ({min(ratios):.3f}..{max(ratios):.3f}); "
        f"loader {100 * statistics.median(loads):.3f} % of a step"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
