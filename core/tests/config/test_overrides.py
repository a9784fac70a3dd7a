"""Words key=value: one grammar for every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanozoo_core.config import compose_config, resolve
from nanozoo_core.config.overrides import (
    as_written,
    parse_override,
    quoted,
    section_values,
    split_model_values,
)
from nanozoo_core.errors import CheckpointError, ConfigError
from nanozoo_core.machine.terminal import reported_errors
from nanozoo_core.training.resume import config_to_store
from nanozoo_core.training.run_folder import RunFolder


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
    key = "log.wandb_project"
    with pytest.raises(ConfigError, match=rf"cannot be read.*quotes, as in {key}=\"'x=y'\""):
        compose_config(["model=toy", f"{key}=x=y"])
    assert compose_config(["model=toy", f"{key}='x=y'"])["log"]["wandb_project"] == "x=y"


@pytest.mark.parametrize(
    "path", ["caf\u00e9/x", "a=b", "a'b[", "a#b&c", "\u65e5\u672c", "~x", 'a"b']
)
def test_a_path_needs_no_quotes(path: str) -> None:
    assert compose_config(["model=toy", f"run_dir={path}"])["run_dir"] == path
    assert parse_override(f"folder={path}").value == path


def test_paths_of_a_list_need_no_quotes() -> None:
    assert parse_override("runs=caf\u00e9,b").value == ["caf\u00e9", "b"]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("seed=[", "a bracket in it is not closed"),
        ("seed='", "a quote in it is not closed"),
        ("seed=\u00b2", "it has the sign \u00b2 without quotes"),
        ("seed=a=b", "it has the sign = without quotes"),
        ("seed=\n&", "it has the sign & without quotes"),
    ],
)
def test_a_reason_speaks_of_the_word_and_not_of_a_grammar(word: str, reason: str) -> None:
    for read in (parse_override, lambda word: compose_config(["model=toy", word])):
        with pytest.raises(ConfigError, match=f"cannot be read: {reason}") as caught:
            read(word)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("word", ["=1", "+=1", "~", "hydra=null", "hydra=5"])
def test_a_word_that_names_no_setting_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"names no setting|is no setting"):
        compose_config(["model=toy", word])


def test_a_section_is_no_list() -> None:
    with pytest.raises(ConfigError, match=r"^data=\[\] must be a section with keys of its own$"):
        compose_config(["model=toy", "data=[]"])


def test_a_reference_to_the_environment_is_stored_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOZOO_SECRET", "token-1")
    written = "${oc.env:NANOZOO_SECRET}"
    words = ["model=toy", f"log.wandb_project={written}", "log.wandb=true"]
    config = resolve(compose_config([*words, f"data.path=[{written},b]"]))
    assert config.training.log.wandb_project == "token-1"
    assert config.training.data.path == ["token-1", "b"]
    stored = config_to_store(config.training, config.model_cfg)
    folder = RunFolder(tmp_path)
    folder.write_config(stored)
    text = folder.config_path.read_text()
    assert "token-1" not in text
    assert text.count(written) == 2
    assert as_written(stored)["log"]["wandb_project"] == written
    assert folder.read_config() == stored  # what it refers to now
    monkeypatch.delenv("NANOZOO_SECRET")
    with pytest.raises(CheckpointError, match="environment variable NANOZOO_SECRET, which is not"):
        folder.read_config()


def test_errors_do_not_show_what_the_environment_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOZOO_SECRET", "token-2")
    with pytest.raises(SystemExit), reported_errors():
        resolve(compose_config(["model=toy", "seed=${oc.env:NANOZOO_SECRET}"]))
    assert capsys.readouterr().err == "error: seed=${oc.env:NANOZOO_SECRET} must be an integer\n"


def test_a_section_may_be_left_out() -> None:
    words = ["eval.bytes=2e3", "draws=3"]
    assert section_values(words, section="eval") == {"bytes": 2000.0, "draws": 3}


def test_settings_of_the_model_are_told_from_others() -> None:
    words = ["model_cfg.capacity=0.5", "eval.draws=1"]
    assert split_model_values(words) == ({"capacity": 0.5}, ["eval.draws=1"])
