"""An Apple GPU for machines without one: a device that has no float64 and whose tensors do not mix
with those of the CPU.

Its tensors hold ordinary ones and compute with them. To PyTorch they are on the meta device, which
every build has and autograd knows, and to Python code on mps.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

MPS, META = torch.device("mps", 0), torch.device("meta")
UNSUPPORTED = (torch.float64, torch.complex128)

# Operations that take tensors of both devices: one copies, the others are indexed from the CPU.
MIXING = {
    torch.ops.aten.copy_.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}


class PretendTensor(Tensor):
    """A tensor on the pretended device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        if held.dtype in UNSUPPORTED:
            raise TypeError(f"MPS has no {held.dtype}; move to the CPU before converting")
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=META,
        )
        tensor.held = held
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({self.held})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _compute(operation, args, kwargs or {})


class _Numbering(TorchFunctionMode):
    """Names the device with its number: without one PyTorch asks the driver, which is not there."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args = tuple(map(_numbered, args))
        kwargs = {name: _numbered(value) for name, value in (kwargs or {}).items()}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") in (MPS, META):
            del kwargs["device"]  # these read Python numbers without asking the dispatcher
            return function(*args, **kwargs).to(MPS)
        if function is Tensor.backward:
            with self:  # for what is called by the functions on the way
                return torch.autograd.backward(args)
        return function(*args, **kwargs)


def _numbered(value: Any) -> Any:
    names_it = isinstance(value, str | torch.device) and str(value) == "mps"
    return MPS if names_it else value


class _Placement(TorchDispatchMode):
    """Makes tensors for the pretended device where they are asked for by name, or by PyTorch itself
    to go with others on it: then it says meta."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to skip it would import the compiler."""
        return False

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        place = kwargs.get("device")
        if place is None or torch.device(place).type not in ("mps", "meta"):
            return operation(*args, **kwargs)
        return _compute(operation, args, kwargs)


def _compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on what the tensors hold, its results on the device where they belong."""
    operands = list(_flat((*args, *kwargs.values())))
    here = any(isinstance(x, PretendTensor) for x in operands)
    place = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    leaves = place is not None and place.type == "cpu"
    if kwargs.get("dtype") in UNSUPPORTED and not leaves:
        raise TypeError(f"MPS has no {kwargs['dtype']}; move to the CPU before converting")
    if here and operation not in MIXING:
        _refuse_mixing(operation, operands)
    if not leaves and any(isinstance(x, torch.Generator) for x in operands):
        raise RuntimeError(f"{operation} on MPS was given a generator of the CPU")
    held = {name: _held(value) for name, value in kwargs.items()}
    if place is not None:
        held["device"] = torch.device("cpu")
    found = operation(*map(_held, args), **held)
    if leaves:
        return found
    wrapped = _wrapped(found)
    return return_and_correct_aliasing(operation, args, kwargs, wrapped) if here else wrapped


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _held(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_held, value))
    return value.held if isinstance(value, PretendTensor) else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_wrapped, value))
    return PretendTensor(value) if isinstance(value, Tensor) else value


def _refuse_mixing(operation: Any, operands: list[Any]) -> None:
    for x in operands:
        if isinstance(x, Tensor) and not isinstance(x, PretendTensor) and x.dim() > 0:
            raise RuntimeError(f"{operation} got tensors of the CPU beside those of MPS")


@contextmanager
def pretend_mps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside it `device=mps` is there."""
    known = torch.backends.mps.is_available
    monkeypatch.setattr(torch.backends.mps, "is_available", functools.wraps(known)(lambda: True))
    # Moving a module then keeps weights that are tied as one.
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    with _Numbering(), _Placement():
        yield
