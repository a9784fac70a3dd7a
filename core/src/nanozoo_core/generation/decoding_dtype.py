"""In which type the matrices of a model decode: float32, or rounded to bfloat16 where that is
faster. A token at batch 1 reads every weight once, so half the bytes are up to half the time.

N rows that a product reads at once, I inputs and O outputs of a matrix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.machine.device import resolve_dtype
from nanozoo_core.machine.environment import forced_precision

LEAST_WEIGHTS = 2**16  # of a matrix: below it the calls that round its input cost what it saves
LEAST_TOTAL = 2**21  # of all of them: below it a model lies in a core's own cache
LEAST_SPEEDUP = 1.2
MOST_COLUMNS = 256  # above these rows, turning the result costs more than the product saves
PROBED_WEIGHTS = 2**24  # 64 MiB in float32, more than a core's own cache
PROBE_ROUNDS = 5

Item = TypeVar("Item")


class RoundedMatrix(Tensor):
    """A float32 matrix (O, I) with its bfloat16 copy, of which `F.linear` makes its products. All
    else sees the float32 numbers: a look-up in a table that is the output head too, a slice, a
    norm."""

    rounded: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> RoundedMatrix:
        made = cast(RoundedMatrix, matrix.detach().as_subclass(cls))
        made.rounded = matrix.detach().to(torch.bfloat16)
        return made

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if function is F.linear and not kwargs and isinstance(args[1], RoundedMatrix):
            x, matrix = args[0], args[1]
            if x.dtype == torch.float32:
                return rounded_linear(x, matrix.rounded, args[2] if len(args) > 2 else None)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


def rounded_linear(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b in float32 with x (..., I), rounded to the bfloat16 of `matrix` W (O, I), and the
    bias (O,) in float32. The sums are float32 inside the product and rounded behind it."""
    narrow = x.to(matrix.dtype)
    num_rows = x.numel() // x.shape[-1]
    if 1 < num_rows <= MOST_COLUMNS:
        # W x^T, not x W^T: a CPU takes W as it lies, and 16 rows cost it little more than one.
        product = (matrix @ narrow.reshape(num_rows, -1).mT).mT  # (N, O)
        wide = product.to(dtype=x.dtype, memory_format=torch.contiguous_format)
        y = wide.view(*x.shape[:-1], len(matrix))
    else:
        y = F.linear(narrow, matrix).to(x.dtype)
    return y if bias is None else y.add_(bias)


class RoundedWeights:
    """Inside it the products of a model with its large matrices are of bfloat16, and everything
    else is what it is outside: norms, softmax, scans and sampling. It can be entered any number of
    times, by one thread; each time costs some microseconds. While it lives, half the bytes of the
    matrices lie in memory once more.

    A weight whose product must not be rounded, such as one that chooses experts, has the attribute
    `keeps_float32`.
    """

    def __init__(self, model: nn.Module) -> None:
        rounded = {id(matrix): RoundedMatrix.of(matrix) for matrix in large_matrices(model)}
        self._places = [
            (module._parameters, name, parameter, rounded[id(parameter)])
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and id(parameter) in rounded
        ]

    def __enter__(self) -> None:
        for parameters, name, _, rounded in self._places:
            parameters[name] = cast(nn.Parameter, rounded)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for parameters, name, parameter, _ in self._places:
            parameters[name] = parameter


def large_matrices(model: nn.Module) -> list[Tensor]:
    """The float32 weights of Linear layers and of the output head that are worth rounding, and may
    be."""
    found = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    head = getattr(model, "output_weight", None)
    if isinstance(head, nn.Parameter):
        found.append(head)
    return [
        matrix
        for matrix in {id(matrix): matrix for matrix in found}.values()
        if matrix.dtype == torch.float32
        and matrix.numel() >= LEAST_WEIGHTS
        and not getattr(matrix, "keeps_float32", False)
    ]


def decoding_contexts(
    pairs: Iterable[tuple[DefaultModelAdapter, nn.Module]],
    name: str,
    *,
    num_rows: int = 1,
    tell: Callable[[str], object] | None = None,
) -> list[RoundedWeights]:
    """What each step of decoding with some models is to be in; empty for float32.

    auto takes bfloat16 on a CPU for a model that reads from left to right, where a probe at the
    shapes of its matrices finds it `LEAST_SPEEDUP` times as fast. A model that denoises stays
    float32: it reads whole windows, and draws from ratios of probabilities that rounding moves.
    $NANOZOO_CPU_PRECISION decides in place of the probe.

    Args:
        num_rows: texts that are decoded together.
        tell: hears the choice in a line with its figures, where the probe has made it.

    Raises: ConfigError where the device has no bfloat16.
    """
    chosen = []
    for adapter, model in pairs:
        device = next(model.parameters()).device
        if name == "auto" and (device.type != "cpu" or adapter.can_denoise):
            continue
        if name != "auto":
            if resolve_dtype(name, device) == torch.bfloat16:
                chosen.append(RoundedWeights(model))
            continue
        shapes = [(m.shape[0], m.shape[1]) for m in large_matrices(model)]
        if sum(rows * width for rows, width in shapes) < LEAST_TOTAL:
            continue
        if decided := forced_precision():
            chosen += [RoundedWeights(model)] if decided == "bfloat16" else []
            continue
        full, half = probe(tuple(shapes), num_rows, torch.get_num_threads())
        is_faster = full >= LEAST_SPEEDUP * half
        if is_faster:
            chosen.append(RoundedWeights(model))
        if tell is not None:
            tell(
                f"{'bfloat16' if is_faster else 'float32'} weights: {1e3 * half:.2f} ms for the "
                f"largest products of a step in bfloat16, {1e3 * full:.2f} ms in float32 "
                f"({full / half:.2f} times as fast); --dtype chooses"
            )
    return chosen


@cache
@torch.no_grad()
def probe(
    shapes: tuple[tuple[int, int], ...], num_rows: int, num_threads: int
) -> tuple[float, float]:
    """Seconds that products of `num_rows` vectors with the largest matrices of some `shapes` (O, I)
    take in float32 and rounded, the least of a few turns. Asked again it answers the same, so that
    a process writes the same text for the same seed.

    Args: num_threads: torch's number, with which the answer changes.
    """
    left, sample = PROBED_WEIGHTS, []
    for fan_out, fan_in in sorted(shapes, key=lambda shape: shape[0] * shape[1], reverse=True):
        size = min(fan_out, left // fan_in)
        if size:
            sample.append(torch.ones(size, fan_in))
        left -= size * fan_in
    pairs = [(matrix, matrix.to(torch.bfloat16)) for matrix in sample]
    inputs = {matrix.shape[1]: torch.ones(num_rows, matrix.shape[1]) for matrix in sample}
    # Other programs do not change the seconds of this process, which are too coarse on Windows.
    is_fine = time.get_clock_info("process_time").resolution <= 1e-5
    clock = time.process_time if is_fine else time.perf_counter

    def seconds(index: int, product: Callable[[Tensor, Tensor], Tensor]) -> float:
        started = clock()
        for pair in pairs:
            product(inputs[pair[0].shape[1]], pair[index])
        return clock() - started

    rounds = [(seconds(0, F.linear), seconds(1, rounded_linear)) for _ in range(PROBE_ROUNDS)]
    return min(full for full, _ in rounds), min(half for _, half in rounds)


def step_by_step(items: Iterable[Item], contexts: Sequence[RoundedWeights]) -> Iterator[Item]:
    """The same items, each made inside the contexts, which whoever takes them is not in."""
    iterator = iter(items)
    while True:
        with inside(contexts):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


@contextmanager
def inside(contexts: Sequence[RoundedWeights]) -> Iterator[None]:
    """All of some contexts."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
