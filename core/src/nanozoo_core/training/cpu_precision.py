"""Which types and forms a run on a CPU computes in, found by a short measurement.

Processors differ by twelve in how fast they multiply in bfloat16 beside float32, and no flag of
theirs says it; nor do products say how much of a model's step they are. So attention and
Newton-Schulz are timed at the model's own shapes, and then its own loss and gradient in both types,
once for each machine, version of torch and model: the cache keeps what was found.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nanozoo_core.config import TrainingConfig
from nanozoo_core.config.schema import to_dict
from nanozoo_core.data.cache import cache_root, digest, write_record
from nanozoo_core.errors import CheckpointError, DataError, NonFiniteError
from nanozoo_core.files import read_json
from nanozoo_core.machine.attention_form import AttentionForm, attention_form
from nanozoo_core.machine.device import autocast, device_name
from nanozoo_core.machine.environment import FORCED, forced_precision
from nanozoo_core.machine.ranks import Ranks
from nanozoo_core.machine.terminal import say
from nanozoo_core.nn.attention import sdpa
from nanozoo_core.optim.orthogonalize import orthogonalize

WORTH = 1.2  # how much faster bfloat16 must be, for what it costs in digits
MOST_TOKENS, ROUNDS = 1024, 2
VERSION = 1  # of what is measured
CPU = torch.device("cpu")
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

DtypeName = Literal["float32", "bfloat16"]
Losses = Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]]
"""Makes a model of the run's shape, and its loss on about `MOST_TOKENS` tokens."""


@dataclass(frozen=True)
class Measured:
    """Milliseconds."""

    step: dict[str, float]
    """Of the model's loss and gradient on a few windows, by type; the forms are the best ones."""
    attention: dict[str, float]
    """Of a layer's attention there and back in bfloat16, by form; empty where none was found."""
    newton_schulz: dict[str, float]
    """Of two matrices, by type."""

    @property
    def speedup(self) -> float:
        """Of a step in bfloat16."""
        return self.step["float32"] / self.step["bfloat16"]

    @property
    def best_form(self) -> AttentionForm:
        if not self.attention:
            return "kernel"
        return min(get_args(AttentionForm), key=lambda form: self.attention[form])


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
        parts = [f"a step {_both(found.step)}"]
        if found.attention:
            by_form = ", ".join(f"{ms:.1f} by {form}" for form, ms in found.attention.items())
            parts.append(f"attention in bfloat16 {by_form}")
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
    config: TrainingConfig, model_cfg: Any, losses: Losses, *, ranks: Ranks
) -> tuple[TrainingConfig, Choice | None]:
    """The config with what is `auto` of a CPU's precision replaced by what it stands for where that
    is bfloat16, so that a resumed run and an evaluation keep it. All ranks choose what rank 0 does.

    Args: losses: called only where something is to be measured.

    Returns: the choice too, None where nothing was to choose.
    Raises: ConfigError for a forced type of another name.
    """
    muon = config.optim.muon
    is_open = "auto" in (config.dtype, config.attention_form, muon.orth_dtype)
    has_begun = config.dtype == "auto" and config.resume is not None  # in float32
    if config.dtype in ("float32", "float16") or has_begun or not is_open:
        return config, None
    choice = None
    if ranks.is_main:
        choice = forced(config.dtype)
        if choice is None:
            choice = decide(_measured(config, model_cfg, losses), asked=config.dtype)
    choice = ranks.broadcast(choice)
    if choice.dtype == "float32":  # which is what auto stands for wherever a run goes on
        return config, choice
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
    name = forced_precision()
    if name is None:
        return None
    if asked == "bfloat16" or name == "bfloat16":
        return Choice("bfloat16", "products", "bfloat16")
    return Choice("float32", "kernel", "float32")


def decide(found: Measured, *, asked: str) -> Choice:
    """Args: asked: the setting dtype; the type itself is chosen where it is auto."""
    if asked == "auto" and found.speedup < WORTH:
        return Choice("float32", "kernel", "float32", found)
    times = found.newton_schulz
    is_worth = WORTH * times["bfloat16"] <= times["float32"]
    return Choice("bfloat16", found.best_form, "bfloat16" if is_worth else "float32", found)


# -- measurements ---------------------------------------------------------------------------------


def _measured(config: TrainingConfig, model_cfg: Any, losses: Losses) -> Measured:
    """From the cache, or measured now and kept there."""
    about = [config.model, to_dict(model_cfg), config.data.seq_len, config.train.batch_tokens]
    key = digest([device_name(torch.device("cpu")), torch.__version__, VERSION, about])
    path = cache_root() / "precision" / f"{key}.json"
    if path.exists():
        with suppress(CheckpointError, NonFiniteError):  # damaged: measured anew
            return read_json(path, lambda found: Measured(**found), remedy="delete it")
    say("measuring whether bfloat16 pays on this CPU")
    found = measure(model_cfg, losses, seq_len=config.data.seq_len)
    with suppress(DataError):  # a cache that cannot be written costs the next run this measurement
        write_record(path, asdict(found))
    return found


def measure(model_cfg: Any, losses: Losses, *, seq_len: int) -> Measured:
    """Times the forms of attention, then a step of the model in both types, with the best one."""
    generator = torch.Generator().manual_seed(0)
    model, loss = losses()
    attention = {}
    heads, width = (_largest(getattr(model_cfg, key, None)) for key in ("num_heads", "model_dim"))
    if heads and width:
        size = (max(1, MOST_TOKENS // seq_len), seq_len, heads, width // heads)
        inputs = [torch.randn(*size, generator=generator).transpose(1, 2) for _ in range(4)]
        for form in get_args(AttentionForm):
            attention[form] = _milliseconds(partial(_attention_step, inputs, form))
    sides = [min(p.shape) for p in model.parameters() if p.ndim == 2] or [64]
    side = sorted(sides)[len(sides) // 2]
    matrices = torch.randn(2, side, side, generator=generator)
    newton_schulz = {
        name: _milliseconds(partial(orthogonalize, matrices, dtype=dtype))
        for name, dtype in TYPES.items()
    }
    form = Measured({}, attention, newton_schulz).best_form

    def step(dtype: torch.dtype) -> None:
        with attention_form(form), autocast(CPU, dtype):
            value = loss(model)
        value.backward()

    with torch.random.fork_rng(devices=[]):
        steps = {name: _milliseconds(partial(step, dtype)) for name, dtype in TYPES.items()}
    return Measured(steps, attention, newton_schulz)


def _largest(value: Any) -> int | None:
    """A number, or the largest of a list: of the stages of a model, say."""
    numbers = [x for x in (value if isinstance(value, list | tuple) else [value]) if type(x) is int]
    return max(numbers, default=None)


def _attention_step(inputs: list[Tensor], form: AttentionForm) -> None:
    """Causal attention of q, k, v, and the gradients that that of its output gives."""
    q, k, v, grad = (each.bfloat16() for each in inputs)
    with attention_form(form):
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
