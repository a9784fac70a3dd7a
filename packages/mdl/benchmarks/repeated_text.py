"""Little text read many times: masked diffusion beside the control at several regularisations.

    python packages/mdl/benchmarks/repeated_text.py [--folder runs/repeated] [--arms A,B]
        [--reads N,N] [--seeds N] [--jobs N] [KEY=VALUE ...]

Every arm is trained once for each number of readings, each run with a schedule of its own, on about
a MB of the default text; the rest of the text is validation, of which the first 500 kB are scored.
What is finished is found again, so that arms may be trained in several sittings or processes. The
plot, FOLDER/repeated_text.png, and the table show all arms that are there. KEY=VALUE are settings
of all runs, such as dtype=bfloat16.

The question is that of arXiv 2507.15857 and 2511.03276: where text is short and compute is not,
diffusion is said to overtake next-token models, since each reading masks the text anew.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path
from typing import Any

from nanozoo_core.comparing.compare.command import compare
from nanozoo_core.config import compose_config, resolve
from nanozoo_core.data.prepare import prepare
from nanozoo_core.machine.terminal import out

TEXT = ["data.val_fraction=0.94"]  # leaves 0.97 MB of the standard library's text for training
RECIPE = ["train.batch_tokens=4096", "train.max_steps=null", "eval.every=0", "eval.draws=2"]
ARMS = {
    "mdl": ("mdl", ["model_cfg.train_draws=1"]),  # one draw of masks a reading: there are many
    "control": ("vanilla", []),
    "dropout_10": ("vanilla", ["model_cfg.preset=custom", "model_cfg.dropout=0.1"]),
    "dropout_30": ("vanilla", ["model_cfg.preset=custom", "model_cfg.dropout=0.3"]),
    "dropout_30_decay": (
        "vanilla",
        [
            "model_cfg.preset=custom",
            "model_cfg.dropout=0.3",
            "optim.weight_decay=0.1",
            "optim.muon.weight_decay=0.1",
        ],
    ),
}
READS = (1, 3, 10, 30, 100)


def read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/repeated"))
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    parser.add_argument(
        "--reads", type=lambda text: [int(n) for n in text.split(",")], default=READS
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    return parser.parse_args()


def train(arguments: argparse.Namespace, arm: str, reads: int, text_bytes: int) -> None:
    """The runs of an arm for one number of readings, by `nanozoo compare`."""
    model, settings = ARMS[arm]
    compare(
        [
            f"models={arm}:{model}",
            f"budget=bytes:{reads * text_bytes}",
            f"seeds={arguments.seeds}",
            f"jobs={arguments.jobs}",
            f"folder={arguments.folder / arm / str(reads)}",
            *TEXT,
            *RECIPE,
            *settings,
            *arguments.settings,
        ]
    )


def scores(folder: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Mean bits per byte, their deviation and the mean FLOPs, by arm and number of readings."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for arm in ARMS:
        for path in sorted((folder / arm).glob("*/results.csv")):
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            bpbs = [float(row["val_bpb"]) for row in rows]
            found.setdefault(arm, {})[int(path.parent.name)] = {
                "bpb": statistics.mean(bpbs),
                "deviation": statistics.stdev(bpbs) if len(bpbs) > 1 else 0.0,
                "flops": statistics.mean(float(row["train_flops"]) for row in rows),
            }
    return {arm: dict(sorted(by_reads.items())) for arm, by_reads in found.items()}


def draw(found: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    for arm, by_reads in found.items():
        bpbs = [one["bpb"] for one in by_reads.values()]
        label = "mdl, at most" if arm == "mdl" else arm.replace("_", " ")
        style = "o-" if arm == "mdl" else "s--"
        panels[0].plot(list(by_reads), bpbs, style, label=label)
        panels[1].plot([one["flops"] / 1e12 for one in by_reads.values()], bpbs, style, label=label)
    for axes, name in zip(panels, ("readings of the text", "FLOPs of training (T)"), strict=True):
        axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("bits per byte of validation text")
    panels[0].legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    arguments = read_flags()
    settings = resolve(compose_config(["model=vanilla", *TEXT, *arguments.settings]))
    text_bytes = prepare(settings.training.data).train_bytes
    for arm in arguments.arms:
        for reads in arguments.reads:
            train(arguments, arm, reads, text_bytes)
    found = scores(arguments.folder)
    for arm, by_reads in found.items():
        for reads, one in by_reads.items():
            out(f"{arm} {reads}: {one['bpb']:.4f} +- {one['deviation']:.4f} bits per byte, "
                f"{one['flops'] / 1e12:.3g} T FLOPs")  # fmt: skip
    draw(found, arguments.folder / "repeated_text.png")


if __name__ == "__main__":
    main()
