"""Trainings in child processes that start in a moment.

Importing torch takes seconds in every fresh process, so the children are forked from a server that
has done it and nothing else: no thread, no random number, no model.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

TIMEOUT_SECONDS = 300
PRELOADED = [
    "nanozoo_core.training.trainer",
    "nanozoo_core.config.compose",
    "torch._dynamo",
    "hydra",
]


def train_in_processes(
    overrides: Sequence[str], *, log: Path, num_processes: int = 1, without: Sequence[str] = ()
) -> None:
    """Trains on `num_processes` ranks with gloo, as torchrun would start them, one thread each.

    Args:
        overrides: as on the command line of `train`.
        log: a file prefix; rank r writes what it says to `<log>.<r>`.
        without: modules that cannot be imported there.

    Raises: RuntimeError with the end of its log when a process fails or hangs.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = dict(os.environ) | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_processes),
        "OMP_NUM_THREADS": "1",
    }
    children = []
    for rank in range(num_processes):
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        path = log.with_name(f"{log.name}.{rank}")
        child = context.Process(target=_train, args=(list(overrides), own, path, list(without)))
        child.start()
        children.append((child, path))
    failed = []
    for child, path in children:
        child.join(TIMEOUT_SECONDS)
        if child.exitcode != 0:
            said = path.read_text(errors="replace")[-4000:] if path.exists() else ""
            failed.append(f"exit code {child.exitcode}:\n{said}")
            for other, _ in children:
                other.kill()
    if failed:
        raise RuntimeError("\n".join(failed))


def _train(
    overrides: list[str], environment: dict[str, str], log: Path, without: list[str]
) -> None:
    """The child's whole life."""
    import torch

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    for name in without:
        sys.modules[name] = None  # type: ignore[assignment]
    # Left open: multiprocessing writes a traceback there after this function.
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    from nanozoo_core.config import compose_config, resolve
    from nanozoo_core.training.trainer import train

    train(resolve(compose_config(overrides)))
