"""What each ingredient of the record is worth at tiny scale.

    uv run python packages/current_best_gpt/benchmarks/ablation.py --seeds 0 1 2 --jobs 2
    uv run python packages/current_best_gpt/benchmarks/ablation.py --only smear MUDD --steps 100

Trains the default recipe, and the recipe with one ingredient taken out, or one that it lacks put
in; all else stays, and so does the tuning, which favours the default. Prints a table and writes
ablation.json and ablation.png beside the runs. A finished run is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from nanozoo_core.comparing.compare.command import train_members
from nanozoo_core.comparing.compare.report import conditions
from nanozoo_core.comparing.compare.request import Entrant, Request
from nanozoo_core.comparing.compare.results import Entry

MODEL = "current_best_gpt"
FULL = "default"

REMOVED: dict[str, list[str]] = {
    "Muon": ["optim.name=adamw"],
    "Polar Express": ["optim.muon.orth=ns5"],
    "NorMuon": ["optim.muon.beta2=null"],
    "pairs of heads in Muon": ["model_cfg.qk_head_group=0"],
    "cautious decay": ["optim.muon.cautious=false", "optim.adamw.cautious=false"],
    "weight decay": [
        "optim.muon.weight_decay=0",
        "optim.muon.wd_power=1",
        "optim.weight_decay=0",
    ],
    "momentum warm-up": ["optim.muon.momentum_min=0.95"],
    "squared ReLU": ["model_cfg.activation=gelu"],
    "QK-norm": ["model_cfg.qk_norm=false"],
    "half rotary": ["model_cfg.rope_fraction=1.0"],
    "score scale": ["model_cfg.attn_scale=null"],
    "windows": ["model_cfg.windows=[[256,256]]"],
    "growing windows": ["model_cfg.windows=[[64,256]]"],
    "stream gain 1.1": ["model_cfg.residual_scale=1.0"],
    "non-zero attention output": ["model_cfg.attn_out_init=0"],
    "value embeddings": ["model_cfg.value_embed_layers=[]"],
    "gates of value embeddings": ["model_cfg.value_gates=false"],
    "coefficients per token": ["model_cfg.gates_per_token=false"],
    "learned gains": ["model_cfg.learned_gains=false"],
    "x0 injection": ["model_cfg.x0_injection=false"],
    "bigram table": ["model_cfg.bigram_rows=0"],
    "smear": ["model_cfg.smear=false"],
    "key offset": ["model_cfg.key_offset=false"],
    "paired heads": ["model_cfg.paired_layers=[]"],
    "shared attention input": ["model_cfg.shared_attention_input=false"],
    "MUDD": ["model_cfg.mudd=false"],
    "mix of heads": ["model_cfg.dc_layers=[]"],
    "XSA": ["model_cfg.xsa_layers=[]"],
    "attention gate": ["model_cfg.attn_gate_layers=[]"],
    "backout": ["model_cfg.backout=0"],
    "softcap": ["model_cfg.softcap=null"],
    "resets at documents": ["model_cfg.reset_at_document=false"],
    "floor of the rate": ["optim.final_lr_fraction=0"],
}
ADDED: dict[str, list[str]] = {
    "two more tokens in the loss": ["model_cfg.mtp_weights=[[[1,0.5,0.25],[1,0.5,0]],[[1],[1]]]"],
    "prefix in the loss": ["model_cfg.prefix_weight=[[0.25,0.25],[0.25,0]]"],
    "untied at two thirds": ["model_cfg.untie_at=0.6667"],
    "documents kept apart": ["model_cfg.document_mask=true"],
    "windows from document starts": ["data.packing=documents"],
    "YaRN": ["model_cfg.yarn=true"],
    "a skip instead of attention": ["model_cfg.window_pattern=SL-L", "model_cfg.skip=[0,2]"],
    "growing batches": ["model_cfg.batch_scale=[0.5,1.5]", "model_cfg.lr_peaks=[1.0,1.5]"],
    "AdamW at every other step": ["optim.adamw.every=2"],
}


def label(name: str) -> str:
    return f"+ {name}" if name in ADDED else f"- {name}"


def entrant(name: str) -> Entrant:
    changes = () if name == FULL else tuple((REMOVED | ADDED)[name])
    return Entrant(name.lower().replace(" ", "_"), model=MODEL, overrides=changes)


def summary(names: list[str], entries: list[Entry]) -> list[dict[str, object]]:
    """A row per run, the default first and then from the largest loss to the largest gain;
    differences are taken seed by seed."""
    by_label = {entry.label: entry for entry in entries}
    full = by_label[entrant(FULL).label]
    rows: list[dict[str, object]] = []
    for name in names:
        entry = by_label[entrant(name).label]
        changes = [mine - other for mine, other in zip(entry.bpbs, full.bpbs, strict=True)]
        rows.append(
            {
                "name": name if name == FULL else label(name),
                "overrides": list(entrant(name).overrides),
                "val_bpb": entry.mean,
                "difference": statistics.mean(changes),
                "difference_std": statistics.stdev(changes) if len(changes) > 1 else None,
                "params": entry.first["params"],
                "by_seed": entry.bpbs,
            }
        )
    rest = sorted(rows[1:], key=lambda row: -float(row["difference"]))  # type: ignore[arg-type]
    return [rows[0], *rest]


def table(rows: list[dict[str, object]]) -> str:
    lines = ["| run | bits per byte | difference | parameters |", "|---|---|---|---|"]
    for row in rows:
        spread = row["difference_std"]
        margin = "" if spread is None or row["name"] == FULL else f" +- {spread:.4f}"
        change = "" if row["name"] == FULL else f"{row['difference']:+.4f}{margin}"
        params = float(row["params"]) / 1e6  # type: ignore[arg-type]
        lines.append(f"| {row['name']} | {row['val_bpb']:.4f} | {change} | {params:.2f} M |")
    return "\n".join(lines)


def plot(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = rows[:0:-1]  # the largest loss on top
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.25 * len(shown)), layout="constrained")
    axes.barh(
        [str(row["name"]) for row in shown],
        [float(row["difference"]) for row in shown],  # type: ignore[arg-type]
        xerr=[float(row["difference_std"] or 0) for row in shown],  # type: ignore[arg-type]
        color=["#d62728" if str(row["name"]).startswith("-") else "#1f77b4" for row in shown],
    )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("bits per byte over the default's (to the right: worse)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="optimiser steps; the recipe's where not given")
    parser.add_argument("--only", nargs="+", choices=[*REMOVED, *ADDED], metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--override", action="append", default=[], metavar="key=value")
    arguments = parser.parse_args()

    names = [FULL, *(arguments.only or REMOVED | ADDED)]
    request = Request(
        entrants=tuple(entrant(name) for name in names),
        folder=arguments.folder,
        budget=None if arguments.steps is None else ("steps", arguments.steps),
        seeds=tuple(arguments.seeds),
        jobs=arguments.jobs,
        overrides=("eval.every=0", "log.tensorboard=false", *arguments.override),
    )
    entries, failures = train_members(request)
    if failures:
        sys.exit("\n".join(f"{name}: {text}" for name, text in failures.items()))
    rows = summary(names, entries)
    (arguments.folder / "ablation.json").write_text(json.dumps(rows, indent=2) + "\n")
    plot(rows, arguments.folder / "ablation.png")
    print()
    print(table(rows))
    full = entries[0].first
    print(
        f"\n{full['steps']} steps, {full['train_tokens']:,} tokens, {len(request.seeds)} seed(s)."
    )
    print("; ".join(f"{key}: {value}" for key, value in conditions(entries[:1])))


if __name__ == "__main__":
    main()
