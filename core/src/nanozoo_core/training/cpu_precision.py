"""Which types and forms a run on a CPU computes in, found by a short measurement.

Processors differ by twelve in how fast they multiply in bfloat16 beside float32, and no flag of
theirs says it. So products, attention and Newton-Schulz are timed at the model's own shapes, once
for each machine, version of torch and shape: the cache keeps what was found.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nanozoo_core.config import TrainingConfig
from nanozoo_core.data.cache import cache_root, digest, write_record
from nanozoo_core.errors import CheckpointError, ConfigError, DataError
from nanozoo_core.files import read_json
from nanozoo_core.machine.attention_form import AttentionForm, attention_form
from nanozoo_core.machine.device import device_name
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.nn.attention import sdpa
from nanozoo_core.optim.orthogonalize import orthogonalize

FORCED = "NANOZOO_CPU_PRECISION"  # float32 or bfloat16: no measurement, such as in tests
WORTH = 1.2  # how much faster bfloat16 must be, for what it costs in digits
MOST_TOKENS, MOST_SHAPES, ROUNDS = 1024, 3, 3

DtypeName = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Shapes:
    """What a training step of a model multiplies."""

    num_tokens: int
    """Rows of a product: tokens of a micro-batch, but `MOST_TOKENS` at most."""
    products: tuple[tuple[int, int, int], ...]
    """Matrices of one shape: how many, fan-out and fan-in."""
    attention: tuple[int, int, int, int] | None
    """Layers, heads, positions and head_dim; None where the model names no heads."""


@dataclass(frozen=True)
class Measured:
    """Milliseconds of the products and of the attention of `Shapes.num_tokens`, forward and
    backward, and of Newton-Schulz on two matrices."""

    products: dict[str, float]  # by type
    attention_in_float32: float  # of a run in float32; 0 without attention
    attention: dict[str, float]  # of a run in bfloat16, by form; empty without
    newton_schulz: dict[str, float]  # by type

    @property
    def speedup(self) -> float:
        """Of products and attention in bfloat16, this in its best form."""
        before = self.products["float32"] + self.attention_in_float32
        return before / (self.products["bfloat16"] + min(self.attention.values(), default=0.0))


@dataclass(frozen=True)
class Choice:
    """`measured` is None where the choice was forced."""

    dtype: DtypeName
    attention: AttentionForm
    newton_schulz: DtypeName
    measured: Measured | None = None

    def describe(self) -> str:
        """A line for the run's first ones."""
        if self.measured is None:
            return f"precision: {self.dtype}, as {FORCED} says"
        found = self.measured
        parts = [f"products {_both(found.products)}"]
        if found.attention:
            times = {"in float32": found.attention_in_float32} | {
                f"by {name} in bfloat16": ms for name, ms in found.attention.items()
            }
            said = ", ".join(f"{ms:.1f} {name}" for name, ms in times.items())
            parts.append(f"attention {said}")
        parts.append(f"Newton-Schulz {_both(found.newton_schulz)}")
        forms = ""
        if self.dtype == "bfloat16":
            forms = f" with attention by {self.attention} and Newton-Schulz in {self.newton_schulz}"
        return (
            f"precision: {self.dtype}{forms}; bfloat16 is {found.speedup:.2f} times as fast here "
            f"(ms: {'; '.join(parts)})"
        )


def _both(times: dict[str, float]) -> str:
    return f"{times['float32']:.1f} in float32, {times['bfloat16']:.1f} in bfloat16"


def choose(
    config: TrainingConfig, model: nn.Module, model_cfg: Any, *, num_tokens: int, ranks: Ranks
) -> tuple[TrainingConfig, Choice | None]:
    """The config with what is `auto` of a CPU's precision replaced by what it stands for, so that a
    resumed run and an evaluation keep it. All ranks choose what rank 0 does.

    Args: num_tokens: of a micro-batch.

    Returns: the choice too, None where nothing was to choose.
    Raises: ConfigError for a forced type of another name.
    """
    if config.dtype == "auto" and config.resume is not None:
        config = replace(config, dtype="float32")  # what auto was when the run began
    muon = config.optim.muon
    is_open = "auto" in (config.dtype, config.attention_form, muon.orth_dtype)
    if config.dtype in ("float32", "float16") or not is_open:
        return config, None
    choice = None
    if ranks.is_main:
        choice = forced(config.dtype)
        if choice is None:
            shapes = shapes_of(model, model_cfg, num_tokens=num_tokens, seq_len=config.data.seq_len)
            choice = decide(measured(shapes), asked=config.dtype)
    choice = ranks.broadcast(choice)
    if config.attention_form == "auto":
        config = replace(config, attention_form=choice.attention)
    if muon.orth_dtype == "auto" and muon.impl == "nanozoo":
        muon = replace(muon, orth_dtype=choice.newton_schulz)
    config = replace(config, dtype=choice.dtype, optim=replace(config.optim, muon=muon))
    return config, choice


def forced(asked: str) -> Choice | None:
    """What the environment decides in place of a measurement, if it does.

    Args: asked: the setting dtype, which the environment does not overrule.

    Raises: ConfigError for another name.
    """
    name = os.environ.get(FORCED, "")
    if name not in ("", "float32", "bfloat16"):
        raise ConfigError(f"{FORCED}={name} must be float32 or bfloat16, or not be set")
    if not name:
        return None
    if asked == "bfloat16" or name == "bfloat16":
        return Choice("bfloat16", "products", "float32")
    return Choice("float32", "kernel", "float32")


def decide(found: Measured, *, asked: str) -> Choice:
    """Args: asked: the setting dtype; the type itself is chosen where it is auto."""
    if asked == "auto" and found.speedup < WORTH:
        return Choice("float32", "kernel", "float32", found)
    form: AttentionForm = "kernel"
    if found.attention:
        form = min(get_args(AttentionForm), key=lambda name: found.attention[name])
    times = found.newton_schulz
    faster: DtypeName = "bfloat16" if times["bfloat16"] < times["float32"] else "float32"
    return Choice("bfloat16", form, faster, found)


# -- what to measure ------------------------------------------------------------------------------


def shapes_of(model: nn.Module, model_cfg: Any, *, num_tokens: int, seq_len: int) -> Shapes:
    """The shapes of `model` that its products take longest with."""
    counts = Counter(
        (parameter.shape[0], parameter[0].numel())
        for parameter in model.parameters()
        if parameter.ndim == 2
    )
    longest = sorted(counts, key=lambda shape: (-counts[shape] * shape[0] * shape[1], shape))
    heads, width = (_largest(getattr(model_cfg, key, None)) for key in ("num_heads", "model_dim"))
    layers = _largest(getattr(model_cfg, "num_layers", None)) or 1
    attention = (layers, heads, seq_len, width // heads) if heads and width else None
    return Shapes(
        min(num_tokens, MOST_TOKENS),
        tuple((counts[shape], *shape) for shape in longest[:MOST_SHAPES]),
        attention,
    )


def _largest(value: Any) -> int | None:
    """A number, or the largest of a list: of the stages of a model, say."""
    numbers = [x for x in (value if isinstance(value, list | tuple) else [value]) if type(x) is int]
    return max(numbers, default=None)


def measured(shapes: Shapes) -> Measured:
    """From the cache, or measured now and kept there."""
    key = digest([device_name(torch.device("cpu")), torch.__version__, asdict(shapes), ROUNDS])
    path = cache_root() / "precision" / f"{key}.json"
    with suppress(CheckpointError):
        if path.exists():
            return read_json(path, lambda found: Measured(**found), remedy="delete it")
    found = measure(shapes)
    with suppress(DataError):  # a cache that cannot be written costs the next run this measurement
        write_record(path, asdict(found))
    return found


def measure(shapes: Shapes) -> Measured:
    """Times every form; takes some tens of milliseconds for a model of a few million parameters."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    types: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    products = dict.fromkeys(types, 0.0)
    for count, fan_out, fan_in in shapes.products:
        sizes = (shapes.num_tokens, fan_in), (fan_out, fan_in), (shapes.num_tokens, fan_out)
        inputs = [draw(*size) for size in sizes]
        for name, dtype in types.items():
            cast = [each.to(dtype) for each in inputs]
            products[name] += count * _milliseconds(lambda cast=cast: _linear_step(*cast))
    attention: dict[str, float] = {}
    in_float32 = 0.0
    if shapes.attention is not None:
        layers, heads, length, head_dim = shapes.attention
        batch = max(1, shapes.num_tokens // length)
        share = layers * shapes.num_tokens / (batch * length)
        inputs = [draw(batch, length, heads, head_dim).transpose(1, 2) for _ in range(4)]
        for form in get_args(AttentionForm):
            attention[form] = share * _milliseconds(lambda form=form: _attention_step(inputs, form))
        in_float32 = share * _milliseconds(lambda: _attention_step(inputs, None))
    square = max((min(n, m) for _, n, m in shapes.products), default=64)
    matrices = draw(2, min(square, 1024), min(square, 1024))
    newton_schulz = {
        name: _milliseconds(lambda dtype=dtype: orthogonalize(matrices, dtype=dtype))
        for name, dtype in types.items()
    }
    return Measured(products, in_float32, attention, newton_schulz)


def _linear_step(x: Tensor, weight: Tensor, grad: Tensor) -> None:
    """A product of a layer, and the two of its backward pass."""
    torch.mm(x, weight.mT)
    torch.mm(grad, weight)
    torch.mm(grad.mT, x)


def _attention_step(inputs: list[Tensor], form: AttentionForm | None) -> None:
    """Causal attention of q, k, v and the gradient of its output; form None is float32's own."""
    dtype = torch.float32 if form is None else torch.bfloat16
    q, k, v, grad = (each.to(dtype) for each in inputs)
    with attention_form(form or "kernel"):
        y = sdpa(*(x.requires_grad_() for x in (q, k, v)), is_causal=True)
    y.backward(grad)


def _milliseconds(work: Callable[[], object]) -> float:
    """The least of some rounds, after one that warms up."""
    work()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)
