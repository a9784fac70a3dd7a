"""Tests of Triton kernels where there is no GPU: in a child process, by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from nanozoo_core.machine.device import is_interpreting
from nanozoo_core.ops.backend import HAS_TRITON

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


def compile_for_sm_90(
    kernel: Any, kinds: Mapping[str, str], constants: Mapping[str, object], *, num_warps: int
) -> Any:
    """A kernel compiled for an H100, which needs no GPU: its `asm` has the machine code. Asserts
    that there is some, and that a program has no more shared memory than an H100 can give it.

    Args:
        kinds: types of its parameters, as "*bf16"; constants: its constexprs, and parameters with
            no kind that Triton knows to be 1, as a stride. Both by name, and either may hold those
            of other kernels.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = {each.name: each.is_constexpr or each.name not in kinds for each in kernel.params}
    signature = {name: "constexpr" if fixed else kinds[name] for name, fixed in names.items()}
    given = {name: constants[name] for name, fixed in names.items() if fixed}
    source = ASTSource(kernel, signature, constexprs=given)
    binary = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps}
    )
    assert binary.asm["cubin"]
    assert binary.metadata.shared <= 227 * 1024
    return binary
