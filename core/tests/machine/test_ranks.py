"""What is said when one of several processes fails. As a script it is one of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch.distributed as dist

from nanozoo_core.config import DistributedConfig, from_defaults
from nanozoo_core.errors import ConfigError, DataError
from nanozoo_core.machine.ranks import Ranks, process_group
from nanozoo_core.machine.terminal import FAULT_STATUS, out, reported_errors

LOST = "another process has ended, or has not answered for distributed.timeout_seconds="


def fail(case: str, ranks: Ranks) -> None:
    ranks.barrier()  # both have found each other
    if case == "one" and ranks.rank == 1:
        raise ConfigError("only this process\nhas two problems")
    if case == "all":
        raise ConfigError(["the same", f"of {ranks.rank}"])
    if case == "fault" and ranks.rank == 1:
        raise ValueError("our own fault")
    if case == "slow" and ranks.rank == 1:
        time.sleep(8)
    ranks.barrier()
    raise DataError("nobody has failed")


def said_by_two(case: str) -> list[str]:
    """The errors that both write to stderr; both end with a status. As under torchrun, their store
    is none of theirs."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    shared |= {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, case],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    for process in running:  # until it has imported torch
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[1] for process in running]
    assert all(process.returncode in (1, FAULT_STATUS) for process in running)
    return [line for text in said for line in text.splitlines() if line.startswith("error")]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("one", ["error on rank 1: only this process", "error on rank 1: has two problems"]),
        ("fault", [f"error on rank 0: {LOST}4; ", "error: this is a fault of nanozoo"]),
        pytest.param("slow", [f"error on rank 0: {LOST}4; "], marks=pytest.mark.slow),
    ],
)
def test_the_error_of_one_rank_is_told_once_and_with_its_rank(
    case: str, expected: list[str]
) -> None:
    said = said_by_two(case)
    assert len(said) == len(expected), said
    assert all(line.startswith(start) for line, start in zip(said, expected, strict=True)), said


def test_what_several_ranks_say_is_told_once() -> None:
    said = said_by_two("all")
    assert sorted(line.partition(": ")[2] for line in said) == ["of 0", "of 1", "the same"]


def test_a_process_that_waits_in_vain_for_the_others_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    for name, value in (shared | {"TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit), reported_errors(), process_group("cpu", 0.1):
        pass
    assert capsys.readouterr().err.startswith(f"error on rank 1: {LOST}0.1; ")


@pytest.mark.parametrize("seconds", [0, -1, 1e7, float("inf")])
def test_a_time_that_cannot_be_waited_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"distributed\.timeout_seconds"):
        from_defaults(DistributedConfig, timeout_seconds=seconds)


if __name__ == "__main__":
    out("ready")
    sys.stdin.readline()
    with reported_errors(), process_group("cpu", 4.0) as members:
        fail(sys.argv[1], members)
