"""The part of the contract kit that moves every setting, on a config with a setting too many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest

from nanozoo_core.config.control import ControlConfig
from nanozoo_core.config.ranges import Range
from nanozoo_core.errors import Problems
from nanozoo_core.testing.contract_keys import KeysContract
from nanozoo_core.testing.setting_values import other_values, setting_names


@dataclass(frozen=True)
class FurtherConfig(ControlConfig):
    """That of the toy, with a setting that nothing reads."""

    further: int = 3


@dataclass(frozen=True)
class RefusingConfig(FurtherConfig):
    """The same, and it says so."""

    def check(self, p: Problems) -> None:
        super().check(p)
        p.require(
            self.further == 3, f"model_cfg.further={self.further} has no effect; leave it out"
        )


class Keys(KeysContract):
    model = "toy"
    tiny: ClassVar[dict[str, Any]] = {"num_layers": 1, "model_dim": 16, "num_heads": 2}


@pytest.fixture
def keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Keys:
    """Of the toy, whose config class the test may name."""
    config_class = getattr(request, "param", FurtherConfig)
    monkeypatch.setattr("nanozoo_core.registry.config_class", lambda name: config_class)
    return Keys()


def test_key_that_changes_nothing_is_found(keys: Keys) -> None:
    with pytest.raises(AssertionError, match=r"further may be 6, 4, 2, 1, 5, and nothing"):
        keys.test_every_key_changes_something_or_is_refused()


@pytest.mark.parametrize("keys", [RefusingConfig], indirect=True)
def test_key_that_is_refused_is_not(keys: Keys) -> None:
    keys.test_every_key_changes_something_or_is_refused()
    with pytest.raises(AssertionError, match=r"no form .* change anything: {'further'}"):
        keys.test_every_key_of_every_form_changes_something_or_is_refused()


def test_exemption_by_name_says_what_it_is_for(keys: Keys) -> None:
    keys.unmoved_keys = {"further": "a test"}
    keys.test_every_key_changes_something_or_is_refused()
    keys.unmoved_keys = {"farther": "a test"}
    with pytest.raises(AssertionError, match=r"these are no settings: {'farther'}"):
        keys.test_exempt_keys_are_settings_and_change_speed_alone()


def test_key_of_speed_that_changes_numbers_is_found(keys: Keys) -> None:
    keys.speed_keys = {"further": "a test"}
    keys.test_exempt_keys_are_settings_and_change_speed_alone()
    keys.speed_keys = {"num_heads": "a test"}
    with pytest.raises(AssertionError, match=r"model_cfg\.num_heads=\d moves a number by"):
        keys.test_exempt_keys_are_settings_and_change_speed_alone()


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (bool, True, [False]),
        (Literal["auto", True, False], "auto", [True, False]),
        (int, 3, [6, 4, 2, 1, 5]),
        (int, 0, [1, 2, 4]),
        (float | None, 0.5, [1.0, 0.25, 0.45, 1.5, None]),
        (Annotated[int, Range(least=2)], 2, [4, 3]),
        (str, "rra", []),
        (tuple[float, ...], (1.0,), [[2.0], [0.5], [0.9], [3.0], [], [1.0, 1.0], [0]]),
    ],
)
def test_other_values_keep_to_the_type(hint: Any, value: Any, expected: list[Any]) -> None:
    assert other_values(hint, value)[: len(expected)] == expected


@dataclass
class Inner:
    size: int


@dataclass
class Outer:
    inner: Inner
    name: str


def test_settings_of_a_section_have_dotted_names() -> None:
    assert [name for name, _ in setting_names(Outer)] == ["inner.size", "name"]
