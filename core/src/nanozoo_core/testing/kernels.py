"""Tests of Triton kernels where there is no GPU: in a child process, by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nanozoo_core.device import is_interpreting
from nanozoo_core.ssm.arguments import HAS_TRITON

interpreted = pytest.mark.skipif(
    not is_interpreting(), reason="run by a test here in a child process"
)
compiled = pytest.mark.skipif(is_interpreting() or not HAS_TRITON, reason="nothing to compile")


def run_interpreted(path: str, *, num_tests: int) -> None:
    """Asserts that the tests of a file whose names have `test_interpreted` pass, all of them.

    They need a process of their own: TRITON_INTERPRET counts only before triton is imported.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "test_interpreted", path],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"{num_tests} passed" in done.stdout, done.stdout
