import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DTYPES = ["torch.float32", "torch.bfloat16"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of what four gloo ranks left behind."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).with_name("sharded_worker.py")
    done = subprocess.run(
        [sys.executable, worker, folder],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def assert_same_bits(found, expected):
    for a, b in zip(found[0], expected[0], strict=True):
        assert torch.equal(a, b)
    assert found[1].keys() == expected[1].keys()
    for key, value in expected[1].items():
        assert torch.equal(found[1][key], value), key


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sharded_run_equals_the_unsharded_one(runs, world, dtype):
    expected = torch.load(runs / f"alone_{dtype}.pt")
    for rank in range(world):
        assert_same_bits(torch.load(runs / f"{dtype}_{world}_{rank}.pt"), expected)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_matrix_has_one_owner_and_the_load_is_even(runs, world):
    owned, kept = zip(
        *(torch.load(runs / f"owned_{world}_{rank}.pt") for rank in range(world)), strict=True
    )
    assert sum(owned) == 7 + 3 + 3 + 1
    assert max(owned) - min(owned) <= 1
    assert max(kept) < 2 * sum(kept) / world


@pytest.mark.parametrize("world", [1, 4])
def test_a_run_of_two_ranks_continues_on_any_number(runs, world):
    expected = torch.load(runs / "alone_torch.float32.pt")
    assert_same_bits(torch.load(runs / "middle_1.pt"), torch.load(runs / "middle_0.pt"))
    for rank in range(world):
        assert_same_bits(torch.load(runs / f"resumed_{world}_{rank}.pt"), expected)


def test_sharded_matrices_equal_whole_ones_to_the_last_bit(runs):
    expected = torch.load(runs / "alone_matrices.pt")
    for rank in range(4):
        assert_same_bits(torch.load(runs / f"matrices_{rank}.pt"), expected)


def test_sharded_parameters_train_as_whole_ones(runs):
    weights, state, norms = torch.load(runs / "alone_fsdp.pt")
    for rank in range(4):
        found_weights, found_state, found_norms = torch.load(runs / f"fsdp_{rank}.pt")
        assert found_state.keys() == state.keys()
        torch.testing.assert_close(found_weights, weights, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found_state, state, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(torch.stack(found_norms), torch.stack(norms))
