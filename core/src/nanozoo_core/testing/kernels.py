"""Tests of Triton kernels where there is no GPU: in a child process, by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from nanozoo_core.machine.device import is_interpreting
from nanozoo_core.ops.backend import HAS_TRITON
from nanozoo_core.testing.kernel_resources import (
    MAX_SHARED_BYTES,
    Launch,
    Resources,
    compiled_for,
    recorded_launches,
    resources,
)

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
    names = {each.name: each.is_constexpr or each.name not in kinds for each in kernel.params}
    signature = {name: "constexpr" if fixed else kinds[name] for name, fixed in names.items()}
    given = {name: constants[name] for name, fixed in names.items() if fixed}
    return checked_for(
        "sm_90", Launch(kernel, signature, given, frozenset(), {"num_warps": num_warps})
    )


def compile_launches(run: Callable[[], object], *, target: str = "sm_90") -> dict[str, Resources]:
    """What the kernels that `run` launches on a GPU take of one, by function, after asserting of
    each that it compiles and fits. Of a function's several launches the last counts."""
    with recorded_launches(target) as found:
        run()
    assert found, "no kernel was launched"
    by_name = {each.name.rpartition(".")[2]: each for each in found}
    return {name: resources(checked_for(target, each)) for name, each in by_name.items()}


def checked_for(target: str, launch: Launch) -> Any:
    """`compiled_for`, with machine code and no more shared memory than the target has."""
    binary = compiled_for(target, launch)
    assert binary.asm.get("cubin") or binary.asm["hsaco"]
    assert binary.metadata.shared <= MAX_SHARED_BYTES[target]
    return binary
