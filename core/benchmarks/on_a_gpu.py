"""All that wants a GPU in one go: its tests, its kernels beside their torch forms, and the recipes.

    python core/benchmarks/on_a_gpu.py [--folder runs/gpu] [--only tests kernels recipes]
    python core/benchmarks/on_a_gpu.py --rehearse     # a part of it, small, on a CPU

Needs torch >= 2.11, triton, pytest and the packages (`uv sync --all-packages --all-groups`, or
`pip install ./core[test] ./packages/*` beside the torch that is there). A part that fails or takes
too long is named at the end and stops no other. Writes gpu.json, gpu.md and a log for each part;
within ten minutes on an H100.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from nanozoo_core.comparing.units import scaled
from nanozoo_core.machine.device import device_name, peak_flops
from nanozoo_core.testing.timing import Run, seconds
from nanozoo_core.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("gpt2", "vanilla", "current_best_gpt", "mamba", "nsa", "hnet", "mdl")
KERNELS = (
    "core/benchmarks/ssm.py",
    "core/benchmarks/linear_cross_entropy.py",
    "core/benchmarks/attention.py",
    "core/benchmarks/muon.py",
    "packages/hnet/benchmarks/dechunk.py",
    "packages/megabyte/benchmarks/patch_attention.py",
    "core/benchmarks/peers/gpu_kernels.py",
)
RECIPE_SECONDS, LIMIT_SECONDS = 25, 120  # of training, and of a part until it is stopped


@dataclass
class Record:
    """What the parts found, and what failed, by name."""

    folder: Path
    found: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def log(self, name: str) -> Path:
        """Where what a part prints is kept."""
        return self.folder / f"{re.sub('[ /]', '_', name)}.log"

    def run(self, name: str, command: Sequence[str], **environment: str) -> str | None:
        """Runs a part in a process of its own. Returns: what it printed, or None if it failed."""
        print(f"{name} ...", flush=True)
        started = time.perf_counter()
        log = self.log(name)
        with log.open("w", encoding="utf-8") as file:
            try:
                done = subprocess.run(
                    [sys.executable, *command],
                    cwd=ROOT,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=os.environ | environment,
                    timeout=LIMIT_SECONDS,
                )
                status = None if done.returncode == 0 else f"ended with status {done.returncode}"
            except subprocess.TimeoutExpired:
                status = f"was stopped after {LIMIT_SECONDS} seconds"
        text = log.read_text(encoding="utf-8", errors="replace")
        if status is not None:
            last = [line for line in text.splitlines() if line.strip()][-1:]
            self.failures[name] = f"{status}: {' '.join(last)} ({log})"
        print(f"{name}: {status or 'done'}, {time.perf_counter() - started:.0f} s", flush=True)
        return None if status is not None else text


def machine(device: torch.device) -> dict[str, Any]:
    """What it is, and what it reaches: products in bfloat16 and copies."""
    size = 8192 if device.type == "cuda" else 256
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    wide = torch.empty(2**28 if device.type == "cuda" else 2**20, device=device)
    other = torch.empty_like(wide)
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "peak_flops": peak_flops(device),
        "measured_flops": 2 * size**3 / _fastest(lambda: a @ b, device),
        "measured_bytes_per_second": 2 * wide.nbytes / _fastest(lambda: other.copy_(wide), device),
    }


def _fastest(run: Run, device: torch.device) -> float:
    return min(seconds(run, device) for _ in range(10))


def tests(record: Record, *, rehearse: bool) -> None:
    """The tests that need a device; in rehearsal they are only collected."""
    folders = ["core/tests/ops"] if rehearse else ["core/tests", *_test_folders()]
    how = ("--collect-only", "-q") if rehearse else ("-q", "-rf")
    text = record.run("tests", ("-m", "pytest", "-m", "gpu", *how, *folders))
    if text is not None:
        record.found["tests"] = [line for line in text.splitlines() if line.strip()][-1]


def _test_folders() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("packages/*/tests"))


def kernels(record: Record, *, rehearse: bool) -> None:
    """Each benchmark's own numbers, as it prints them."""
    record.found["kernels"] = results = {}
    for script in KERNELS[:1] if rehearse else KERNELS:
        path = record.folder / f"{Path(script).stem}.json"
        small = ("--rounds", "1", "--only", "convolution, tiny") if rehearse else ()
        text = record.run(script, (script, "--json", str(path), *small))
        if text is not None and path.is_file():
            results[script] = json.loads(path.read_text(encoding="utf-8"))["results"]


def recipes(record: Record, *, rehearse: bool) -> None:
    """The published recipes on the text that needs no download: speed, memory and compiling."""
    record.found["recipes"] = results = {}
    for model in RECIPES[:1] if rehearse else RECIPES:
        run = record.folder / "runs" / model
        small = [
            *("model_cfg.preset=null", "model_cfg.num_layers=1", "model_cfg.model_dim=32"),
            *("model_cfg.num_heads=2", "train.batch_tokens=256", "train.micro_batch_tokens=256"),
            *("data.seq_len=64", "train.max_steps=3", "eval.bytes=2000", "compile=false"),
        ]
        whole = [f"train.max_seconds={RECIPE_SECONDS}", "train.max_steps=null", "eval.bytes=200000"]
        command = [
            *("-m", "nanozoo_core.train", "--config", f"configs/{model}.yaml", f"run_dir={run}"),
            *("data.corpus=stdlib", "data.tokenizer=bpe", "train.max_tokens=null", "eval.every=0"),
            *("train.log_every=1", "checkpoint.every=0", *(small if rehearse else whole)),
        ]
        if record.run(f"recipe {model}", command) is not None:
            peak = record.found["machine"]["peak_flops"]
            results[model] = measured(RunFolder(run), peak)


def measured(run: RunFolder, peak: float | None) -> dict[str, Any]:
    """Of a finished run. The first step compiles; the speed is that of the steps behind it."""
    rows = [row for row in run.read_metrics() if "train_bpb" in row]
    result = run.read_result()
    first, last = rows[0], rows[-1]
    spent = last["seconds"] - first["seconds"]
    tokens, flops = last["tokens"] - first["tokens"], last["flops"] - first["flops"]
    return {
        "params": result["params"],
        "steps": result["steps"],
        "tokens_per_second": tokens / spent if spent else None,
        "flops_per_second": flops / spent if spent else None,
        "mfu": flops / spent / peak if peak and spent else None,
        "peak_memory_bytes": result["peak_memory_bytes"],
        "first_step_seconds": first["seconds"],
        "val_bpb": result["val_bpb"],
    }


def page(record: Record) -> str:
    """gpu.md."""
    facts = record.found["machine"]
    lines = [
        f"# {facts['device']}, torch {facts['torch']}, {date.today().isoformat()}",
        f"Products in bfloat16 reach {scaled(facts['measured_flops'], 'FLOP/s')}, copies "
        f"{scaled(facts['measured_bytes_per_second'], 'B/s')}.",
        f"Tests: {record.found.get('tests', 'not run')}",
        "| recipe | parameters | tokens/s | FLOP/s | MFU | memory | first step |\n"
        "|---|---|---|---|---|---|---|",
    ]
    for model, row in record.found.get("recipes", {}).items():
        mfu = "" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
        lines[-1] += (
            f"\n| {model} | {scaled(row['params'])} | {scaled(row['tokens_per_second'])} "
            f"| {scaled(row['flops_per_second'])} | {mfu} "
            f"| {scaled(row['peak_memory_bytes'], 'B')} | {row['first_step_seconds']:.1f} s |"
        )
    for script in record.found.get("kernels", {}):
        said = record.log(script).read_text(encoding="utf-8").strip()
        lines += [f"## {script}", f"```\n{said}\n```"]
    if record.failures:
        lines.append("## Failed")
        lines.append("\n".join(f"- {name} {why}" for name, why in record.failures.items()))
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parts = {"tests": tests, "kernels": kernels, "recipes": recipes}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rehearse", action="store_true", help="a small part of it, on a CPU")
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --rehearse runs a small part of this on a CPU")
    record = Record(arguments.folder.resolve())
    record.folder.mkdir(parents=True, exist_ok=True)
    record.found["machine"] = machine(torch.device("cpu" if arguments.rehearse else "cuda"))
    for name in arguments.only:
        parts[name](record, rehearse=arguments.rehearse)
    stored = record.found | {"failures": record.failures}
    (record.folder / "gpu.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    (record.folder / "gpu.md").write_text(page(record), encoding="utf-8")
    print(f"\n{page(record)}\nwritten to {record.folder}")
    if record.failures:
        sys.exit(f"{len(record.failures)} of the parts failed: {', '.join(record.failures)}")


if __name__ == "__main__":
    main()
