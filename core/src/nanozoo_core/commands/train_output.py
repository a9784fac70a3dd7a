"""What `train --quiet` and `train --json` print on stdout instead of words about the run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from signal import Signals
from typing import Any, Literal

from nanozoo_core.files import to_json
from nanozoo_core.machine.terminal import is_main_process, out, silence
from nanozoo_core.training.run_folder import RunFolder

Output = Literal["words", "quiet", "json"]
FLAGS: dict[str, Output] = {"--quiet": "quiet", "--json": "json"}


def muted(output: Output) -> AbstractContextManager[None]:
    """Inside it a run says nothing by itself, unless words are wanted."""
    return nullcontext() if output == "words" else silence()


def print_row(row: dict[str, Any]) -> None:
    """A row of metrics, as it stands in metrics.jsonl."""
    out(to_json(row, "a row of metrics"))


def print_end(output: Output, run: RunFolder, received: int | None = None) -> None:
    """How a run ended, once: its result, or where it stopped and by which signal."""
    if output == "words" or not is_main_process():
        return
    if run.is_finished:
        result = run.read_result()
        sign = "at most " if result["val_bound"] == "upper" else ""
        sentence = f"{run}: {sign}{result['val_bpb']:.4f} bits per byte"
        values = {"run": str(run), **result}
    else:
        steps = run.checkpoint_steps()
        values = {
            "run": str(run),
            "stopped_at_step": steps[-1] if steps else 0,
            "signal": None if received is None else Signals(received).name,
        }
        sentence = (
            f"{run}: stopped at step {values['stopped_at_step']}; continue with: train resume={run}"
        )
    out(sentence if output == "quiet" else to_json(values, run))
