from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nanozoo_core.errors import NonFiniteError, WriteError
from nanozoo_core.tensor_files import DTYPES, read_tensors, require_finite, write_tensors
from nanozoo_core.testing.full_disk import full_disk


def test_tensors_of_every_type_and_shape_come_back_with_their_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    values = torch.arange(6).reshape(2, 3)
    tensors = {f"{name} {dtype}": values.to(dtype) for dtype, name in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 4), "transposed": values.mT}
    digest = write_tensors(path, tensors)
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    length = int.from_bytes(path.read_bytes()[:8], "little")
    entries = json.loads(path.read_bytes()[8 : 8 + length])
    for name, tensor in tensors.items():
        assert (8 + length + entries[name]["data_offsets"][0]) % tensor.element_size() == 0
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_full_disk_at_any_write_leaves_the_old_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    old, new = ({name: torch.full((3,), value) for name in "ab"} for value in (1.0, 2.0))
    with full_disk() as disk:
        write_tensors(path, old)
    for room in range(len(disk.writes)):
        with full_disk(room), pytest.raises(WriteError, match="No space left"):
            write_tensors(path, new)
        assert torch.equal(read_tensors(path)["b"], old["b"])
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named(value: float) -> None:
    good, bad = torch.full((5,), 3e38), torch.ones(4, 3)
    bad[2, 1] = value
    require_finite({"good": good}, "the file")
    with pytest.raises(NonFiniteError, match=r"the file is not finite: 1 of the 12 values of b "):
        require_finite({"a": good, "b": bad}, "the file")


def test_a_table_of_logarithms_may_hold_that_of_zero() -> None:
    table = torch.tensor([0.0, -float("inf")])
    require_finite({"table": table}, "the file", logarithms={"table"})
    with pytest.raises(NonFiniteError, match="values of table"):
        require_finite({"table": -table}, "the file", logarithms={"table"})
