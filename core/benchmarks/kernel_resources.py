"""Registers, spills and shared memory of every Triton kernel, at the shapes of the recipes.

    python core/benchmarks/kernel_resources.py            # compare with kernel_resources.csv
    python core/benchmarks/kernel_resources.py --write    # write it anew

Needs no GPU, but all packages (`uv sync --all-packages --all-groups`): each op runs as it would on
one, its launches are recorded, and each is compiled for every target. The shapes are those of the
recipes of about 124M parameters in configs/; a batch has one window, as the code of a kernel does
not depend on that. Takes two minutes.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from nanozoo_core.ops.causal_conv import causal_conv1d
from nanozoo_core.ops.log_mixture import LOG_MIXTURE
from nanozoo_core.ops.reduced_head import reduced_head
from nanozoo_core.ops.selective_scan import selective_scan
from nanozoo_core.ops.softmax_step import softmax_step_triton
from nanozoo_core.ops.ssd import ssd
from nanozoo_core.ops.symmetric_matmul import poly2, syrk
from nanozoo_core.testing.kernel_resources import (
    TARGETS,
    Launch,
    compiled_for,
    recorded_launches,
    resources,
)
from nanozoo_hnet.kernels.dechunk import dechunk
from nanozoo_megabyte.patch_attention import patch_attention
from nanozoo_ngpt.kernels.sphere_step import sphere_step
from nanozoo_nsa.compressed.attention import compressed_attention
from nanozoo_nsa.config import Grid
from nanozoo_nsa.selected.attention import selected_attention
from nanozoo_nsa.window.attention import window_attention
from nanozoo_sedd.kernels.score_sums import SCORE_SUMS

TABLE = Path(__file__).with_suffix(".csv")
NUMBERS = ("registers", "spill_bytes", "shared_bytes")
COLUMNS = ("kernel", "recipe", "constants", "target", *NUMBERS)
REMAKE = "if that is meant, run `uv run python core/benchmarks/kernel_resources.py --write`"
VOCABULARY = 50257
LOW = torch.bfloat16

Row = dict[str, str]


def made(*shape: int, dtype: torch.dtype = LOW) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=dtype.is_floating_point)


def differentiate(*outputs: Tensor) -> None:
    torch.autograd.backward(outputs, [torch.ones_like(each) for each in outputs])


def mamba1(dtype: torch.dtype = LOW, states: int = 16) -> None:
    length, channels = 1024, 1536
    sequence = [made(1, length, channels, dtype=dtype) for _ in range(3)]
    vectors = [made(1, length, states, dtype=dtype) for _ in range(2)]
    rates, skip = made(channels, states, dtype=torch.float32), made(channels, dtype=torch.float32)
    x, delta, gate = sequence
    y, _ = selective_scan(
        x, delta, rates, *vectors, skip=skip, gate=gate, delta_bias=skip, delta_softplus=True
    )
    differentiate(y)


def mamba2(dtype: torch.dtype = LOW) -> None:
    length, heads, width, states = 1024, 24, 64, 128
    wide = made(1, length, heads * width + 2 * states, dtype=dtype)
    x, b, c = wide.split([heads * width, states, states], dim=-1)
    rates = [made(1, length, heads, dtype=torch.float32) for _ in range(2)]
    skip = made(heads, dtype=torch.float32)
    y, _ = ssd(x.unflatten(-1, (heads, width)), *rates, b, c, skip=skip, chunk_size=256)
    differentiate(y)


def convolution() -> None:
    channels = 1792  # of the last one's inner width and its two vectors
    weight, bias = made(channels, 4, dtype=torch.float32), made(channels, dtype=torch.float32)
    differentiate(causal_conv1d(made(1, 1024, channels), weight, bias))


def nsa() -> None:
    length, grid = 4096, Grid(32, 16, 64, 8, 1, 2)
    q, k, v = made(1, 2, length, 6, 64), made(1, 2, length, 64), made(1, 2, length, 64)
    windows = grid.num_windows(length)
    compressed, _ = compressed_attention(q, made(1, 2, windows, 64), made(1, 2, windows, 64), grid)
    chosen = torch.full((1, 2, length, grid.num_free), -1, dtype=torch.int32)
    selected = selected_attention(q, k, v, chosen, grid)
    differentiate(compressed, selected, window_attention(q, k, v, 256, grid))


def hnet() -> None:
    length, chunks, width = 8192, 1536, 512
    values, residual = made(1, chunks, width), made(1, length, width, dtype=torch.float32)
    index = torch.arange(length)[None] // 6
    probs = [made(1, n, dtype=torch.float32) for n in (chunks, length)]
    differentiate(dechunk(values, probs[0], index, probs[1], residual))


def megabyte() -> None:
    q, k, v = (made(1024, 8, 8, 64) for _ in range(3))
    differentiate(patch_attention(q, k, v, backend="triton"))


def ngpt() -> None:
    stream, step = (made(1, 1024, 768) for _ in range(2))
    differentiate(sphere_step(stream, step, made(768, dtype=torch.float32)))


def muon() -> None:
    for rows, columns in ((768, 768), (768, 3072)):
        gram = syrk(torch.zeros(1, rows, columns, dtype=LOW))
        poly2(gram, 1.0, 1.0)


def head() -> None:
    targets = torch.zeros(8, 1, dtype=torch.int64)
    logits = torch.zeros(8, VOCABULARY, dtype=LOW)
    softmax_step_triton(logits, targets, None, softcap=None, normalised=True, with_gradient=True)


def heads_of_diffusion() -> None:
    ids = torch.zeros(2, 8, dtype=torch.int64)
    vocabulary = VOCABULARY + 1  # the mask
    x, weight, bias = made(8, 768), made(vocabulary, 768), made(vocabulary)
    ratio = torch.ones(8)
    differentiate(*reduced_head(x, weight, bias, LOG_MIXTURE, *ids, ratio))
    differentiate(*reduced_head(x, weight, bias, SCORE_SUMS, *ids))


RECIPES: dict[str, Callable[[], None]] = {
    "mamba": mamba1,
    "mamba, d_state 128": lambda: mamba1(states=128),
    "mamba, float32": lambda: mamba1(torch.float32),
    "mamba2 and hnet": mamba2,
    "mamba2, float32": lambda: mamba2(torch.float32),
    "mamba2 and hnet, convolution": convolution,
    "nsa": nsa,
    "hnet": hnet,
    "megabyte": megabyte,
    "ngpt": ngpt,
    "vanilla, Muon": muon,
    "gpt2, loss": head,
    "d3pm and sedd, loss": heads_of_diffusion,
}


def rows(
    recipes: Iterable[str] = tuple(RECIPES), targets: Iterable[str] = tuple(TARGETS), *,
    compiling: bool = True,
) -> list[Row]:  # fmt: skip
    """Those of the table, a kernel's own side by side; without compiling, with no numbers."""
    found = []
    for recipe in recipes:
        by_target = [(target, launch) for target in targets for launch in _launches(recipe, target)]
        for target, launch in sorted(by_target, key=lambda pair: pair[1].name):
            row = dict(
                zip(COLUMNS, (launch.name, recipe, _constants(launch), target), strict=False)
            )
            if compiling:
                used = resources(compiled_for(target, launch))
                row |= {name: str(getattr(used, name)) for name in NUMBERS}
            found.append(row)
    return found


def _launches(recipe: str, target: str) -> list[Launch]:
    """The kernels of a recipe, each once for each machine code, in the order of their run."""
    with recorded_launches(target) as found:
        RECIPES[recipe]()
    return list({each.key: each for each in found}.values())


def _constants(launch: Launch) -> str:
    """Those that tell launches of a kernel apart: its flags, sizes, warps and stages."""
    named = {name: value for name, value in launch.constants.items() if name.isupper()}
    return " ".join(f"{name}={value}" for name, value in (named | dict(launch.options)).items())


def made_with() -> str:
    """The compiler that numbers belong to."""
    return f"# triton {version('triton')}"


def as_text(table: list[Row]) -> str:
    file = io.StringIO()
    file.write(f"{made_with()}\n")
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return file.getvalue()


def committed() -> tuple[str, list[Row]]:
    """What made the table, and its rows."""
    first, *lines = TABLE.read_text(encoding="utf-8").splitlines()
    return first, list(csv.DictReader(lines))


def differences(found: list[Row], stored: list[Row]) -> list[str]:
    """A line for every row of one that the other has not."""
    lines = [[" ".join(row[name] for name in found[0]) for row in part] for part in (stored, found)]
    gone, new = ([line for line in a if line not in set(b)] for a, b in (lines, lines[::-1]))
    return [*(f"- {line}" for line in gone), *(f"+ {line}" for line in new)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name} anew")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = rows()
    if arguments.write:
        TABLE.write_text(as_text(found), encoding="utf-8")
        return
    made, stored = committed()
    changed = differences(found, stored)
    if changed or made != made_with():
        sys.exit("\n".join([f"{TABLE.name}, made with {made[2:]}, differs; {REMAKE}", *changed]))


if __name__ == "__main__":
    main()
