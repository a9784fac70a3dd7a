"""Two nodes of a cluster rehearsed on one machine: an agent of torchrun for each, which find each
other by a c10d rendezvous, as in docs/pages/clusters.md."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanozoo_core.config import compose_config, resolve
from nanozoo_core.training.run_folder import RunFolder
from nanozoo_core.training.trainer import train


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([r["loss"] for r in RunFolder(folder).read_metrics() if "loss" in r])


@pytest.mark.skipif(sys.platform != "linux", reason="torchrun rehearsed on Linux")
def test_two_nodes_train_as_one_process(corpus: Path, tmp_path: Path) -> None:
    words = ["model=toy", "device=cpu", "data.corpus=text", f"data.path='{corpus}'"]
    words += ["log.tensorboard=false", "eval.bytes=300", "train.stop_after=3"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    train(resolve(compose_config([*words, f"run_dir='{alone}'"])))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "rehearsal"),
                *("--rdzv-endpoint", endpoint, "--local-addr", "127.0.0.1"),
                *("-m", "nanozoo_core.train", *words, f"run_dir='{together}'"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    said = [node.communicate(timeout=900)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    torch.testing.assert_close(losses(together), losses(alone), rtol=1e-5, atol=0)
    assert "FutureWarning" not in "".join(said)
    assert sorted(text.count("threads) x 2, float32") for text in said) == [0, 1]
    assert sorted(text.count("stopped at step 3") for text in said) == [0, 1]
