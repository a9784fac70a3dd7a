"""What a checkpoint of a model under fsdp costs each rank: memory and time, whole and in shards.

    uv run python core/benchmarks/saving.py --model vanilla --width 768

Trains a step on two processes with gloo, saves, and says for each rank by how much its memory rose
for it, at the most, and how long the training stood still. Linux alone tells the memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nanozoo_core.config import compose_config, resolve
from nanozoo_core.machine.ranks import process_group
from nanozoo_core.training.trainer import Trainer

NUM_RANKS = 2


def work(words: list[str]) -> None:
    """One rank."""
    with process_group("cpu", 600) as ranks:
        trainer = Trainer(resolve(compose_config(words)), ranks)
        trainer.one_step()  # makes the optimisers' state
        ranks.barrier()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, began = memory("VmRSS"), time.perf_counter()
        trainer._save(beside=True)
        stood = time.perf_counter() - began
        trainer._finish_saving()
        took = time.perf_counter() - began
        rise = (memory("VmHWM") - before) / 1e6
        size = sum(p.numel() for p in trainer.model.parameters()) / 1e6
        for rank in range(ranks.world_size):
            ranks.barrier()
            if rank == ranks.rank:
                print(
                    f"rank {rank}: {size:.0f} M parameters, peak {rise:.0f} MB above what it held, "
                    f"training stood still {stood:.1f} s of {took:.1f} s",
                    flush=True,
                )
        trainer.claim.release()


def memory(kind: str) -> float:
    """Bytes of memory of this process: VmRSS of now, VmHWM the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(float(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vanilla")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    arguments = parser.parse_args()
    for sharded in ("false", "true"):
        with tempfile.TemporaryDirectory() as folder:
            words = [
                *(f"model={arguments.model}", f"run_dir={folder}/run", "device=cpu"),
                *(f"model_cfg.model_dim={arguments.width}", "model_cfg.num_heads=12"),
                *(f"model_cfg.num_layers={arguments.layers}", "train.batch_tokens=512"),
                *("train.max_steps=9", "log.tensorboard=false", "distributed.strategy=fsdp"),
                f"checkpoint.sharded={sharded}",
            ]
            print(f"checkpoint.sharded={sharded}", flush=True)
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            launch += [f"--nproc-per-node={NUM_RANKS}", __file__, "--", *words]
            subprocess.run(launch, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    if "RANK" in os.environ:
        work(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:])
    else:
        main()
