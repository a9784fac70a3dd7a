"""Rounded weights: what they change, what they leave, and when they are taken.

I inputs and O outputs of a matrix.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_core.config.control import ControlConfig
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.generation import decoding_dtype
from nanozoo_core.generation.decoding_dtype import (
    RoundedMatrix,
    RoundedWeights,
    decoding_contexts,
    probe,
    rounded_linear,
    step_by_step,
)
from nanozoo_core.machine.environment import FORCED
from nanozoo_core.nn.control import ControlModel
from nanozoo_core.python.generation import TextRequest
from nanozoo_core.testing.rounding import UNIT_ROUNDOFF, check_rounded_decoding, relative_bound


class Parts(nn.Module):
    """A table that is the output head too, a product, and one that is kept in float32."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Embedding(16, 8)
        self.inner = nn.Linear(8, 8)
        self.kept = nn.Linear(8, 8, bias=False)
        self.kept.weight.keeps_float32 = True  # type: ignore[attr-defined]
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    @property
    def output_weight(self) -> Tensor:
        return self.table.weight

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.table(tokens)
        return {
            "looked_up": x,
            "slice": x @ self.inner.weight[:4].mT,
            "kept": self.kept(x),
            "inner": self.inner(x),
            "logits": F.linear(x, self.output_weight),
        }


TOKENS = torch.tensor([[3, 1, 7], [0, 15, 2]])
EXACT = {"looked_up", "slice", "kept"}


@pytest.fixture(autouse=True)
def every_matrix_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_dtype, "LEAST_WEIGHTS", 1)


def equal_parts(found: dict[str, Tensor], expected: dict[str, Tensor]) -> set[str]:
    return {name for name, part in found.items() if torch.equal(part, expected[name])}


@pytest.mark.parametrize("shape", [(5,), (1, 1, 5), (3, 5), (2, 3, 5), (300, 5), (0, 5)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_rounded_product_is_that_of_the_rounded_numbers(
    shape: tuple[int, ...], has_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    matrix = torch.randn(7, 5, generator=generator).bfloat16()
    bias = torch.randn(7, generator=generator) if has_bias else None
    found = rounded_linear(x, matrix, bias)
    products = F.linear(x.bfloat16().double(), matrix.double())
    expected = products if bias is None else products + bias
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert found.shape == expected.shape
    allowed = relative_bound(1) * products.abs() + 1e-5  # one rounding, and float32's own
    assert bool(((found - expected).abs() <= allowed).all())


@torch.no_grad()
def test_only_products_that_may_be_are_rounded() -> None:
    model = Parts()
    exact = model(TOKENS)
    weights = RoundedWeights(model)
    for _ in range(2):
        with weights:
            assert equal_parts(model(TOKENS), exact) == EXACT
        assert equal_parts(model(TOKENS), exact) == set(exact)
    assert not any(isinstance(parameter, RoundedMatrix) for parameter in model.parameters())


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = Parts()
    before = list(model.parameters())
    with pytest.raises(IndexError), RoundedWeights(model):
        model(torch.tensor([99]))
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


def test_whoever_takes_a_step_is_not_inside_of_it() -> None:
    model = Parts()
    weights = RoundedWeights(model)

    def is_inside() -> bool:
        return isinstance(model.inner.weight, RoundedMatrix)

    found = []
    for inside in step_by_step((is_inside() for _ in range(3)), [weights]):
        found.append((inside, is_inside()))
    assert found == [(True, False)] * 3
    assert not is_inside()
    assert list(step_by_step((is_inside() for _ in range(2)), [])) == [False, False]


# -- the choice --------------------------------------------------------------------------------


class Denoiser(DefaultModelAdapter):
    def denoise(self, *arguments: object) -> None:  # type: ignore[override]
        raise NotImplementedError


def choose(
    name: str, monkeypatch: pytest.MonkeyPatch, *, speedup: float, **options: type
) -> tuple[int, list[str]]:
    """How many models decode rounded, and what is said, where the probe finds `speedup`."""
    monkeypatch.setattr(decoding_dtype, "probe", lambda *_: (speedup * 0.002, 0.002))
    adapter = options.get("adapter", DefaultModelAdapter)(object, Parts)
    told: list[str] = []
    return len(decoding_contexts([(adapter, Parts())], name, tell=told.append)), told


@pytest.mark.parametrize(("speedup", "count"), [(1.21, 1), (1.19, 0)])
def test_auto_takes_what_the_probe_finds_faster_and_says_so(
    monkeypatch: pytest.MonkeyPatch, speedup: float, count: int
) -> None:
    monkeypatch.setattr(decoding_dtype, "LEAST_TOTAL", 1)
    monkeypatch.delenv(FORCED)
    found, told = choose("auto", monkeypatch, speedup=speedup)
    assert found == count
    (line,) = told
    assert line.startswith("bfloat16 weights: 2.00 ms" if count else "float32 weights: 2.00 ms")
    assert f"{speedup:.2f} times as fast" in line


@pytest.mark.parametrize(("name", "count"), [("float32", 0), ("bfloat16", 1)])
def test_the_environment_decides_what_auto_is(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    monkeypatch.setattr(decoding_dtype, "LEAST_TOTAL", 1)
    monkeypatch.setenv(FORCED, name)
    assert choose("auto", monkeypatch, speedup=9 if name == "float32" else 0) == (count, [])


def test_auto_leaves_small_models_and_those_that_denoise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORCED)
    assert choose("auto", monkeypatch, speedup=9) == (0, [])
    monkeypatch.setattr(decoding_dtype, "LEAST_TOTAL", 1)
    assert choose("auto", monkeypatch, speedup=9, adapter=Denoiser) == (0, [])


@pytest.mark.parametrize(("name", "count"), [("float32", 0), ("bfloat16", 1)])
def test_a_type_that_is_named_is_not_probed(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    monkeypatch.setattr(decoding_dtype, "LEAST_TOTAL", 1)
    assert choose(name, monkeypatch, speedup=0) == (count, [])


def test_the_probe_answers_the_same_when_it_is_asked_again() -> None:
    shapes = ((40, 16), (16, 16))
    first = probe(shapes, 2, 1)
    assert min(first) > 0
    assert probe(shapes, 2, 1) == first


def test_another_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="dtype=float16 is none of auto, float32, bfloat16"):
        TextRequest(dtype="float16")


# -- how far rounding goes ---------------------------------------------------------------------


def test_no_chain_of_roundings_leaves_the_bound() -> None:
    """And a single one comes as near to it as the spacing of the numbers lets it."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.ones(4096, dtype=torch.float64)
    rounded = exact
    for count in range(1, 31):
        factor = 1 + torch.rand(4096, generator=generator, dtype=torch.float64)
        exact, rounded = exact * factor, (rounded * factor).bfloat16().double()
        error = float((rounded / exact - 1).abs().max())
        assert error <= relative_bound(count)
    just_below_the_tie = torch.tensor(1 + UNIT_ROUNDOFF - 1e-6).bfloat16()
    assert 1 - float(just_below_the_tie) / (1 + UNIT_ROUNDOFF) > 0.99 * UNIT_ROUNDOFF
    with pytest.raises(ValueError, match="256 roundings"):
        relative_bound(256)


def test_rounded_decoding_with_a_cache_is_that_without_and_causal() -> None:
    torch.manual_seed(0)
    config = ControlConfig(32, 16, 2, 32, num_heads=4, mlp_ratio=4)
    model = ControlModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    tokens = torch.randint(32, (1, 12), generator=generator)
    adapter = DefaultModelAdapter(ControlConfig, ControlModel)
    check_rounded_decoding(adapter, model, tokens, vocab_size=32)
