"""What a compiled Triton kernel takes of a GPU, told without one: registers, spills, shared
memory.

`recorded_launches` runs code that would launch kernels and keeps how each was called;
`compiled_for` compiles such a call for a target as Triton would on it; `resources` reads what the
compiler wrote.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "gfx942": ("hip", "gfx942", 64),
}
"""By name, Triton's back end, architecture and threads of a warp."""
MAX_SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
"""Of a program, on an A100, an H100 and an MI300X (the vendors' guides)."""
_KINDS = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32",
    torch.int64: "*i64", torch.bool: "*i1", torch.uint8: "*u8",
}  # fmt: skip
_PLACE_ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Launch:
    """A call of a kernel, as far as its machine code depends on it."""

    kernel: Any
    kinds: Mapping[str, str]
    """Types of its parameters by name, "constexpr" for those that are fixed."""
    constants: Mapping[str, object]
    aligned: frozenset[str]
    """Pointers and integers that 16 divides."""
    options: Mapping[str, int]
    """num_warps, num_stages."""

    @property
    def name(self) -> str:
        """Module and function."""
        return f"{self.kernel.fn.__module__}.{self.kernel.fn.__name__}".removeprefix("nanozoo_")

    @property
    def key(self) -> str:
        """Equal for launches that share their machine code."""
        parts = (dict(self.kinds), dict(self.constants), sorted(self.aligned), dict(self.options))
        return f"{self.name} {parts}"


@dataclass(frozen=True)
class Resources:
    """Of one program, or of one of its threads."""

    registers: int
    """Of a thread; on AMD vector registers, those of the accumulators with them."""
    spill_bytes: int
    """Of a thread: its stack, which holds nothing but what found no register."""
    shared_bytes: int
    """Of a program."""


@contextmanager
def recorded_launches(target: str) -> Iterator[list[Launch]]:
    """Inside, kernels are not run, and tensors of the CPU say that they are on a GPU: code that
    chooses kernels there takes those of `target`, and their results are whatever memory holds."""
    from triton.runtime.jit import JITFunction

    found: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append(_launch(kernel, args, options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", record)
        patch.setattr(Tensor, "is_cuda", property(lambda tensor: True))
        patch.setattr(torch.version, "hip", "7" if TARGETS[target][0] == "hip" else None)
        yield found


def _launch(kernel: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Launch:
    """As Triton's own specialisation: integers of 1 are constants, multiples of 16 are known."""
    names = [each.name for each in kernel.params]
    values = dict(zip(names, args, strict=False)) | given
    options = {name: values.pop(name) for name in list(values) if name not in names}
    kinds, constants, aligned = {}, {}, set()
    for parameter in kernel.params:
        name = parameter.name
        value = values.get(name, parameter.default if parameter.has_default else None)
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            kinds[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            kinds[name] = _KINDS[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                aligned.add(name)
        elif isinstance(value, int):
            kinds[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.add(name)
        else:
            assert isinstance(value, float), (kernel, name, value)
            kinds[name] = "fp32"
    return Launch(kernel, kinds, constants, frozenset(aligned), options)


def compiled_for(target: str, launch: Launch) -> Any:
    """The kernel compiled for one of `TARGETS`; its `asm` has the code.

    Raises: an error of the compiler's own when it cannot.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(launch.kinds)
    attributes = {(names.index(name),): _PLACE_ALIGNED for name in sorted(launch.aligned)}
    source = ASTSource(
        launch.kernel, dict(launch.kinds), constexprs=dict(launch.constants), attrs=attributes
    )
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=dict(launch.options))


def resources(binary: Any) -> Resources:
    """Of what `compiled_for` returns."""
    read = _of_cubin if "cubin" in binary.asm else _of_amdgcn
    return read(binary)


def _of_cubin(binary: Any) -> Resources:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary.asm["cubin"])
        done = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path],
            capture_output=True,
            text=True,
            check=True,
        )
    found = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", done.stdout)}
    return Resources(found["REG"], found["STACK"] + found["LOCAL"], binary.metadata.shared)


def _of_amdgcn(binary: Any) -> Resources:
    text = binary.asm["amdgcn"]

    def value(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", text)[-1])

    return Resources(
        value("vgpr_count"), value("private_segment_fixed_size"), binary.metadata.shared
    )
