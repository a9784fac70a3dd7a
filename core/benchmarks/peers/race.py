"""Two trainings timed in one process: what the scripts of this folder share."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.errors import first_line
from nanozoo_core.machine.attention_form import attention_form
from nanozoo_core.testing import timing
from nanozoo_core.testing.timing import end
from nanozoo_core.training.cpu_precision import WORTH

__all__ = [
    "Contestant",
    "adamw",
    "begin",
    "both_settings",
    "end",
    "find",
    "race",
    "race_shapes",
    "show_race",
    "show_sizes",
]

CPU = torch.device("cpu")
# Of a loss in bfloat16, relative: logits and the loss are each rounded to 8 bits, half a unit off.
TWO_ROUNDINGS = 2 * 2.0**-9


# -- forms of a training --------------------------------------------------------------------------


def autocast() -> AbstractContextManager[None]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@contextmanager
def autocast_but_attention() -> Iterator[None]:
    """Autocast whose fused attention, backward too, runs in float32: on many processors that in
    bfloat16 is slower."""
    own = F.scaled_dot_product_attention

    def precise(query: Tensor, *others: Any, **named: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            named = {name: _as_float32(value) for name, value in named.items()}
            return own(_as_float32(query), *map(_as_float32, others), **named).to(query.dtype)

    F.scaled_dot_product_attention = precise
    try:
        with autocast():
            yield
    finally:
        F.scaled_dot_product_attention = own


def _as_float32(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if is_half else value


@contextmanager
def autocast_with_products() -> Iterator[None]:
    with autocast(), attention_form("products"):
        yield


FORMS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "float32": nullcontext,
    "bfloat16": autocast,
    "bfloat16, attention float32": autocast_but_attention,
    "bfloat16, attention products": autocast_with_products,
}
"""In which a loss may be computed, the gradients following it. The peer has the fastest of the
first three; the last is core's own."""
PEER_FORMS = tuple(FORMS)[:3]
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Contestant:
    """A model in training: its loss on a batch, and what moves its weights once their gradients are
    there and takes these away. A loss that draws noise draws it from torch's global generator."""

    loss: Callable[[], Tensor]
    update: Callable[[], None]

    def step(self, form: str) -> None:
        with FORMS[form]():
            loss = self.loss()
        loss.backward()
        self.update()

    @torch.no_grad()
    def value(self, form: str = "float32") -> float:
        """The loss, on the same noise every time."""
        torch.manual_seed(0)
        with FORMS[form]():
            return float(self.loss())

    def check_rounding(self, form: str) -> None:
        """Raises: ValueError where the loss is not that of float32, up to what bfloat16 rounds."""
        exact, rounded = self.value(), self.value(form)
        if not abs(rounded - exact) <= TWO_ROUNDINGS * abs(exact):
            raise ValueError(f"the loss is {rounded:.5f} in {form} and {exact:.5f} in float32")


def adamw(model: nn.Module, loss: Callable[[], Tensor]) -> Contestant:
    """Under AdamW(fused=True) and zero_grad."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Contestant(loss, update)


def fastest_form(
    contestant: Contestant, forms: Sequence[str] = PEER_FORMS
) -> tuple[str, dict[str, float | str]]:
    """The name of the fastest of some forms, float32 first, and of each the speed over that of
    float32, or why it is out: it may hold operations that do not mix, or lose its precision."""
    steps: dict[str, Callable[[], None]] = {}
    told: dict[str, float | str] = {}
    for form in forms:
        try:
            contestant.check_rounding(form)
            contestant.step(form)
        except (RuntimeError, ValueError) as error:
            if form == "float32":
                raise
            told[form] = first_line(error)
        else:
            steps[form] = partial(contestant.step, form)
    times = timing.take_turns(steps, CPU, rounds=3)
    speeds = {form: times.speed(form, than="float32").median for form in steps}
    return max(speeds, key=lambda form: speeds[form]), told | speeds


def our_form(ours: Contestant, asked: str) -> tuple[str, dict[str, float | str]]:
    """As a training chooses: with auto bfloat16 in its fastest form where a step is then WORTH
    times as fast, else float32. Args: asked: of DTYPES."""
    if asked == "float32":
        return asked, {}
    best, told = fastest_form(ours, tuple(FORMS))
    speeds = {form: speed for form, speed in told.items() if isinstance(speed, float)}
    del speeds["float32"]
    if asked == "auto" and max(speeds.values(), default=0.0) < WORTH:
        return "float32", told
    return max(speeds, key=lambda form: speeds[form], default=best), told


# -- the race -------------------------------------------------------------------------------------


def race(
    peer: str,
    theirs: Contestant,
    ours: Contestant,
    arguments: argparse.Namespace,
    *,
    num_tokens: int,
    flops_per_token: float | None = None,
) -> dict[str, Any]:
    """Median tokens per second of both, and the ratio ours / theirs over rounds: median and range.
    The two alternate, and take turns at being first. The peer runs in its fastest form, ours in the
    dtype of the command line.

    Args: num_tokens: of a step. flops_per_token: of our training, by our formula.
    """
    form, forms = fastest_form(theirs)
    chosen, choices = our_form(ours, arguments.dtype)
    runs = {peer: partial(theirs.step, form), "nanozoo": partial(ours.step, chosen)}
    repeats = max(1, round(1 / max(timing.seconds(runs[peer], CPU, 2), 1e-9)))
    times = timing.take_turns(runs, CPU, rounds=arguments.rounds, repeats=repeats)
    ratio = times.speed("nanozoo", than=peer)
    rates = {who: num_tokens / times.median(who) for who in runs}
    flops = None if flops_per_token is None else flops_per_token * rates["nanozoo"]
    return {
        **{f"{who}_tokens_per_second": rate for who, rate in rates.items()},
        "ratio": ratio.median,
        "ratio_least": ratio.least,
        "ratio_most": ratio.most,
        "dtype": chosen.partition(",")[0],
        "form": chosen,
        "forms": choices,
        "peer": peer,
        "peer_form": form,
        "peer_forms": forms,
        "flops_per_second": flops,
    }


# -- what the scripts share besides ---------------------------------------------------------------


def find(folder: str) -> Path:
    """The clone of another project in the folder that PEERS names, or the end of the program."""
    path = Path(os.environ.get("PEERS", "")) / folder
    if "PEERS" not in os.environ or not path.exists():
        sys.exit(f"set PEERS to the folder where {folder} is cloned (no {path})")
    return path


def both_settings(shape: tuple[int, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """Layers, heads, width, sequence, batch and vocabulary in nanoGPT's names, and in ours."""
    ours = ("num_layers", "num_heads", "model_dim", "seq_len", "", "vocab_size")
    theirs = ("n_layer", "n_head", "n_embd", "block_size", "", "vocab_size")
    named = (dict(zip(names, shape, strict=True)) for names in (theirs, ours))
    first, second = ({k: v for k, v in settings.items() if k} for settings in named)
    return first, second


def begin(
    description: str | None, shapes: Iterable[str], **options: list[str]
) -> argparse.Namespace:
    """Reads the command line (`options` are further choices, all by default) and sets the process
    up, on the CPU."""
    parser = timing.flags(description, rounds=7)
    parser.set_defaults(device="cpu")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of our products; auto is the faster one, by a short measure",
    )
    for name, choices in {**options, "shapes": list(shapes)}.items():
        parser.add_argument(f"--{name}", nargs="*", choices=choices, default=choices)
    return timing.begin(parser)


def show_race(row: dict) -> str:
    """The ratio and its range, our dtype and the peer's form."""
    ratio = f"{row['ratio']:>8.3f}  ({row['ratio_least']:.3f}..{row['ratio_most']:.3f})"
    return f"{ratio}  {row['dtype']} over {row['peer_form']}"


def show_sizes(row: dict) -> str:
    """Parameters and speeds of the two, and the race between them."""
    names = (row["peer"], "nanozoo")
    sizes = [row["parameters"][who] for who in names]
    rates = [row[f"{who}_tokens_per_second"] for who in names]
    numbers = [f"{size:>13,}" for size in sizes] + [f"{rate:>10,.0f}" for rate in rates]
    return "".join(numbers) + show_race(row)


def race_shapes(
    description: str | None,
    shapes: Iterable[str],
    peer: str,
    compare: Callable[[str, argparse.Namespace], dict],
) -> None:
    """A race for every shape that the command line asks for, as a table.

    Args: peer: the name that `compare(shape, arguments)` gave to `race`.
    """
    arguments = begin(description, shapes)
    results = {}
    print(f"{'shape':<10}{f'{peer} tok/s':>15}{'nanozoo tok/s':>15}{'ratio':>8}  (range)")
    for name in arguments.shapes:
        row = results[name] = compare(name, arguments)
        rates = [row[f"{who}_tokens_per_second"] for who in (peer, "nanozoo")]
        print(f"{name:<10}{rates[0]:>15,.0f}{rates[1]:>15,.0f}{show_race(row)}", flush=True)
    end(arguments, results)
