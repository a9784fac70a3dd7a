"""What one training step does, counted and not timed: the same on every machine.

The counts of a model stand in `step_counts.json` beside its contract tests, which fail where a step
no longer counts that: what makes a step dearer is then a line in a diff. remake_counts.py makes the
file.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nanozoo_core.contract import Step
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine.device import autocast, no_autocast
from nanozoo_core.machine.precision import casts_kept
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.training.distributed import LossModule
from nanozoo_core.training.parts import Part, seed_dropout, with_totals

FILE = "step_counts.json"
COMMAND = "python -m nanozoo_core.testing.remake_counts"
LARGE_BYTES = 32 << 20
"""Above it glibc maps every block anew, and each page of it costs a fault."""

CPU = torch.device("cpu")
ATEN = torch.ops.aten
CASTS = {ATEN._to_copy.default: 0, ATEN.copy_.default: 1}
"""Which of an op's arguments is cast."""


# -- a step ---------------------------------------------------------------------------------------


def micro_steps(count: int) -> list[Step]:
    """Of the first step of a run."""
    return [Step(0, 0.0, 0, micro_step=number, num_micro_steps=count) for number in range(count)]


def take_step(
    adapter: DefaultModelAdapter, model: nn.Module, parts: Sequence[Part], dtype: torch.dtype
) -> None:
    """Losses and gradients of a global batch as the trainer takes them: one autocast, whose cache
    of cast weights is good as long as the weights are, around all micro-batches."""
    module = LossModule(model, adapter)
    adapter.before_step(model, parts[0][1])
    parts = with_totals(adapter, module, parts, Ranks(), device=CPU, dtype=dtype)
    with autocast(CPU, dtype), casts_kept():
        for batch, step in parts:
            seed_dropout(step)
            loss, _ = module(batch, step)
            with no_autocast(CPU):
                (loss / step.num_micro_steps).backward()
    model.zero_grad()


# -- counters -------------------------------------------------------------------------------------


def flops(adapter: DefaultModelAdapter, model: nn.Module, parts: Sequence[Part]) -> int:
    """Of the products of a step in float32, as torch counts them; those of attention as plain
    products, whose kernels differ between machines."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        take_step(adapter, model, parts, torch.float32)
    return counter.get_total_flops()


def graph_breaks(
    adapter: DefaultModelAdapter, model: nn.Module, parts: Sequence[Part]
) -> tuple[int, list[str]]:
    """Of the loss of the first part when it is compiled, and their reasons."""
    torch._dynamo.reset()
    found = torch._dynamo.explain(LossModule(model, adapter))(*parts[0])
    torch._dynamo.reset()
    return found.graph_break_count, [str(reason.reason) for reason in found.break_reasons]


def watch_step(
    adapter: DefaultModelAdapter, model: nn.Module, parts: Sequence[Part], dtype: torch.dtype
) -> Watch:
    """What casts and large blocks a step in `dtype` makes."""
    with Watch(model) as watch:
        take_step(adapter, model, parts, dtype)
    return watch


class Watch(TorchDispatchMode):
    """Counts casts of weights, and new storages above LARGE_BYTES."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {_storage(p): name for name, p in model.named_parameters()}
        self.sizes = {name: p.numel() for name, p in model.named_parameters()}
        self.num_casts = 0
        self.cast_elements: Counter[str] = Counter()
        self.large_bytes = 0
        self.places: defaultdict[str, set[str]] = defaultdict(set)

    @property
    def cast_again(self) -> dict[str, float]:
        """How many times each weight was cast, of those that were more than once."""
        times = {name: count / self.sizes[name] for name, count in self.cast_elements.items()}
        return {name: count for name, count in sorted(times.items()) if count > 1}

    def told_places(self) -> list[str]:
        """The lines behind what should not be: large blocks, and weights that are cast again."""
        told = {k: v for k, v in self.places.items() if k in self.cast_again or k not in self.sizes}
        return [f"{what} at {place}" for what, places in told.items() for place in sorted(places)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in CASTS:
            self._note_cast(args[CASTS[func]], out)
        given = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(out):  # a view, and what is written in place, is none of them
            if isinstance(tensor, Tensor) and _storage(tensor) not in given:
                self._note_new(tensor.untyped_storage().nbytes())
        return out

    def _note_cast(self, source: Tensor, result: Tensor) -> None:
        name = self.names.get(_storage(source))
        if name is not None and source.dtype != result.dtype:
            self.num_casts += 1
            self.cast_elements[name] += source.numel()
            self.places[name].add(_place())

    def _note_new(self, num_bytes: int) -> None:
        if num_bytes > LARGE_BYTES:
            self.large_bytes += num_bytes
            self.places[f"{num_bytes / 2**20:.0f} MiB"].add(_place())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _place() -> str:
    """The line of a model or of core that runs now. The backward of torch's own ops has none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path, is_here = Path(frame.f_code.co_filename), frame.f_code.co_filename == __file__
        if not is_here and "torch" not in path.parts:
            return f"{path.name}:{frame.f_lineno}"
        if is_here and frame.f_code is take_step.__code__:
            break
        frame = frame.f_back
    return "the backward of an op"


# -- the table ------------------------------------------------------------------------------------


Tables = dict[Path, dict[str, dict[str, Any]]]
REMADE = pytest.StashKey[Tables]()
"""Where pytest keeps the tables while they are remade, and no test compares."""


def hold_to_table(
    request: pytest.FixtureRequest, counts: dict[str, Any], places: Sequence[str]
) -> None:
    """Asserts that a step counts what the table says for the class of the running test.

    Args: places: where what was counted lies in the code, for the message.
    """
    path, row = request.path.with_name(FILE), request.cls.__name__
    remade = request.config.stash.get(REMADE, None)
    if remade is not None:
        remade.setdefault(path, {}).setdefault(row, {}).update(counts)
        return
    command = f"{COMMAND} {os.path.relpath(path.parent)}"
    if not path.exists():
        pytest.skip(f"what a step counts is held to no table; `{command}` makes {FILE}")
    table = json.loads(path.read_text(encoding="utf-8")).get(row, {})
    changed = [f"{k} {table.get(k)} -> {v}" for k, v in counts.items() if table.get(k) != v]
    assert not changed, (
        f"a step no longer counts what {FILE} says: {'; '.join(changed)}; where that is meant, "
        f"`{command}` remakes the table. Seen: {', '.join(places) or 'nothing that should not be'}"
    )
