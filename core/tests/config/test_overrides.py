"""Words key=value: one grammar for every command."""

from __future__ import annotations

import pytest

from nanozoo_core.config import compose_config
from nanozoo_core.config.overrides import (
    parse_override,
    quoted,
    section_values,
    split_model_values,
)
from nanozoo_core.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("eval.bytes=2e3", "eval.bytes", 2000.0),
        ("a=null", "a", None),
        ("a=true", "a", True),
        ("a=", "a", ""),
        ("+a=-3", "a", -3),
        ("a=[1,2]", "a", [1, 2]),
        ("a=x,y:z", "a", ["x", "y:z"]),
        ("a={b:1}", "a", {"b": 1}),
        ("a='two words'", "a", "two words"),
        ("a=['two words',b]", "a", ["two words", "b"]),
        ("a=runs/gpt2/2026-01-01_00-00-00", "a", "runs/gpt2/2026-01-01_00-00-00"),
    ],
)
def test_a_word_has_the_value_that_train_gives_it(word: str, key: str, value: object) -> None:
    found = parse_override(word)
    assert (found.key, found.value) == (key, value)
    assert type(found.value) is type(value)


@pytest.mark.parametrize("word", ["a=[1", "a={", "a=x y=z"])
def test_a_word_that_cannot_be_read_is_named(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_override(word)
    assert caught.value.problems[0].startswith(f"'{word}' cannot be read")


def test_a_word_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fast' must have the form key=value"):
        parse_override("fast")


@pytest.mark.parametrize(
    "text",
    [
        *("a b", "it's", "x=y", "back\\slash", "end\\", "a\\'b", "a,b", "[", "{x}"),
        *("${x}", "a\\${x}", "\\\\${x}'${y:z}", "$", "{", "$ {x}"),
    ],
)
def test_a_quoted_text_comes_back(text: str) -> None:
    assert parse_override(f"key={quoted(text)}").value == text
    assert compose_config(["model=toy", f"run_dir={quoted(text)}"])["run_dir"] == text


def test_how_to_quote_is_said_where_composing_fails() -> None:
    with pytest.raises(ConfigError, match=r"cannot be read.*quotes, as in run_dir=\"'x=y'\""):
        compose_config(["model=toy", "run_dir=x=y"])
    assert compose_config(["model=toy", "run_dir='x=y'"])["run_dir"] == "x=y"


def test_a_section_may_be_left_out() -> None:
    words = ["eval.bytes=2e3", "draws=3"]
    assert section_values(words, section="eval") == {"bytes": 2000.0, "draws": 3}


def test_settings_of_the_model_are_told_from_others() -> None:
    words = ["model_cfg.capacity=0.5", "eval.draws=1"]
    assert split_model_values(words) == ({"capacity": 0.5}, ["eval.draws=1"])
