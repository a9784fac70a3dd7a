from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import pytest

from nanozoo_core.config import schema
from nanozoo_core.config.ranges import Count, Decay, Positive, Range
from nanozoo_core.errors import ConfigError, Problems


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    """The rate."""
    name: Literal["muon", "adamw"] = "muon"

    def __post_init__(self) -> None:
        p = Problems()
        p.require(self.lr > 0, f"inner.lr={self.lr} must be positive")
        p.raise_if_any()


@dataclass(frozen=True)
class Outer:
    num_layers: int = 1
    """How many
    blocks."""
    flag: Literal["auto", True, False] = "auto"
    widths: list[int] | int = 4
    note: str | None = None
    preset: Literal["small", "large"] | None = None
    inner: Inner = field(default_factory=Inner)
    windows: tuple[tuple[int, ...], ...] = ()

    renamed: ClassVar[dict[str, str]] = {"colour": "note (in words)"}


def problems(data: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        schema.from_dict(Outer, data, owner="demo")
    return caught.value.problems


def test_values_arrive_in_the_type_asked_for() -> None:
    built = schema.from_dict(
        Outer, {"num_layers": 3.0, "flag": True, "widths": [1, 2], "inner": {"lr": 1}}
    )
    assert built == Outer(3, True, [1, 2], None, None, Inner(1.0))
    assert isinstance(built.num_layers, int)
    assert isinstance(built.inner.lr, float)


def test_round_trip() -> None:
    outer = Outer(2, False, [3], "x", None, Inner(0.5, "adamw"))
    assert schema.from_dict(Outer, schema.to_dict(outer)) == outer


def test_tuples_are_stored_as_yaml_reads_them_back() -> None:
    outer = schema.from_dict(Outer, {"windows": [[1, 2], [3]]})
    assert outer.windows == ((1, 2), (3,))
    assert schema.to_dict(outer)["windows"] == [[1, 2], [3]]


def test_a_config_names_its_own_renamed_keys() -> None:
    assert problems({"colour": 2}) == ["colour is called note (in words) here"]


def test_unknown_key_names_the_nearest() -> None:
    assert problems({"num_layer": 2}) == [
        "num_layer is not a setting of demo; did you mean 'num_layers'?"
    ]


def test_old_name_is_refused_with_the_new_one() -> None:
    assert problems({"n_layers": 2}) == ["n_layers is called num_layers here"]


def test_all_problems_are_reported_at_once() -> None:
    found = problems({"num_layers": "two", "inner": {"lr": -1.0}, "spare": 1})
    assert len(found) == 3
    assert found[0] == "num_layers=two must be an integer"
    assert found[1] == "inner.lr=-1.0 must be positive"
    assert found[2].startswith("spare is not a setting of demo")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"num_layers": 1.5}, "num_layers=1.5 must be an integer"),
        ({"num_layers": True}, "num_layers=true must be an integer"),
        ({"num_layers": None}, "num_layers=null must be an integer"),
        ({"flag": 1}, "flag=1 must be one of auto, true, false"),
        ({"widths": ["a"]}, "widths=['a'] must be a list of an integer or an integer"),
        (
            {"preset": "smal"},
            "preset=smal must be one of small, large or null; did you mean 'small'?",
        ),
        ({"inner": 3}, "inner=3 must be a section with keys of its own"),
        (
            {"inner": {"name": "muo"}},
            "inner.name=muo must be one of muon, adamw; did you mean 'muon'?",
        ),
    ],
)
def test_wrong_type_says_what_is_right(data: dict[str, object], message: str) -> None:
    assert problems(data) == [message]


def test_field_help_reads_the_line_under_a_field() -> None:
    assert schema.field_help(Outer) == {"num_layers": "How many blocks."}


def test_field_help_has_inherited_fields_first() -> None:
    @dataclass(frozen=True)
    class Derived(Outer):
        top_k: int = 1
        """How many are taken."""

    expected = {"num_layers": "How many blocks.", "top_k": "How many are taken."}
    assert schema.field_help(Derived) == expected


@dataclass(frozen=True)
class Bounded:
    rate: Positive = 1.0
    decay: Decay = 0.0
    count: Count | None = None
    layers: Annotated[int, Range(least=1, most=5)] = 1
    shares: list[Positive] | float = 1.0
    names: dict[str, object] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rate": 0}, "rate=0.0 must be positive"),
        ({"rate": float("inf")}, "rate=inf must be finite"),
        ({"rate": float("nan")}, "rate=nan must be finite"),
        ({"rate": 10**400}, "rate=inf must be finite"),
        ({"decay": 1}, "decay=1.0 must be in [0, 1)"),
        ({"count": 0}, "count=0 must be at least 1 or null"),
        ({"count": 2**63}, f"count={2**63} must be at most {2**63 - 1} in size or null"),
        ({"layers": 6}, "layers=6 must be at most 5"),
        ({"shares": [1.0, -1.0]}, "shares=[1.0, -1.0] must be positive"),
        ({"shares": float("inf")}, "shares=inf must be finite"),
        ({"names": {"x": [float("nan")]}}, "names={'x': [nan]} must be finite"),
    ],
)
def test_numbers_are_finite_and_in_their_range(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.from_dict(Bounded, data)
    assert caught.value.problems == [message]


def test_values_at_the_bounds_are_taken() -> None:
    data = {"rate": 1e-300, "decay": 0, "count": 2**63 - 1, "layers": 5, "shares": [2]}
    assert schema.from_dict(Bounded, data) == Bounded(1e-300, 0.0, 2**63 - 1, 5, [2.0])
