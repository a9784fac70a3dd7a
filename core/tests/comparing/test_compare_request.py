"""The arguments of `nanozoo compare`: what they mean, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanozoo_core.comparing.compare.plan import first_difference, make_plan
from nanozoo_core.comparing.compare.request import parse
from nanozoo_core.comparing.compare.width import TOLERANCE, count, match_widths
from nanozoo_core.errors import CheckpointError, ConfigError


def test_variants_have_settings_of_their_own() -> None:
    request = parse(
        ["models=toy,wide:toy", "wide.model_cfg.model_dim=32", "optim.lr=0.01", "seeds=3"]
    )
    members, failures = make_plan(request)
    assert failures == {}
    assert [(m.label, m.seed) for m in members] == [
        ("toy", 0), ("wide", 0), ("toy", 1), ("wide", 1), ("toy", 2), ("wide", 2)
    ]  # fmt: skip
    assert [m.settings["model_cfg"]["model_dim"] for m in members[:2]] == [16, 32]
    assert {m.settings["optim"]["lr"] for m in members} == {0.01}


def test_the_budget_replaces_the_models_own() -> None:
    (member,), _ = make_plan(parse(["models=toy", "budget=tokens:5e3", "seeds=1"]))
    assert member.settings["train"]["max_tokens"] == 5000
    assert member.settings["train"]["max_steps"] is None
    (own,), _ = make_plan(parse(["models=toy", "budget=own", "seeds=1"]))
    assert own.settings["train"]["max_steps"] == 8


def test_a_recipe_takes_part_under_its_name(tmp_path: Path) -> None:
    recipe = tmp_path / "deep.yaml"
    recipe.write_text(
        "defaults: [training, override model: toy, _self_]\nmodel_cfg: {num_layers: 2}\n"
    )
    (member,), _ = make_plan(parse([f"models={recipe}", "seeds=[4]"]))
    assert (member.label, member.model, member.seed) == ("deep", "toy", 4)
    assert member.settings["model_cfg"]["num_layers"] == 2
    assert f"--config {recipe}" in member.command


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "nothing to compare"),
        (["models=toy", "twice"], "'twice' is not key=value"),
        (["models=toy,toy"], "name a variant, as in models=toy,wide:toy"),
        (["models=toy", "budget=byte:1e6"], "did you mean 'bytes'?"),
        (["models=toy", "budget=bytes:0"], "budget=bytes:0 must be UNIT:AMOUNT"),
        (["models=toy", "seeds=0"], "seeds=0 must be a number of seeds"),
        (["models=toy", "seeds=1,1"], "seeds=1,1 must be a number of seeds, or a list"),
        (["models=toy", "jobs=none"], "jobs=none must be a whole number"),
        (["models=toy", "seed=3"], "the seeds are those of seeds="),
        (["models=toy", "resume=auto"], "give the same command again"),
        (["models=toy", "trian.ema=0.9"], "did you mean 'train'?"),
        (["models=train:toy"], "'train' is the name of a setting"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_arguments_that_make_no_sense_are_refused(words: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(words)
    assert part in str(caught.value)


def test_refused_settings_name_the_model() -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(parse(["models=toy,b:toy", "b.model_cfg.num_heads=3", "b.optim.lr=-1"]))
    assert len(caught.value.problems) == 2
    assert all(problem.startswith("b: ") for problem in caught.value.problems)


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    words = ["models=toy", "seeds=1", f"folder={tmp_path}"]
    (member,), _ = make_plan(parse(words))
    member.folder.mkdir(parents=True)
    (member.folder / "metrics.jsonl").touch()
    member.beside("json").write_text(json.dumps({"settings": member.settings}))
    make_plan(parse([*words, "log.tensorboard=false"]))  # changes no result
    with pytest.raises(CheckpointError, match=r"with train.ema=0.0, and now train.ema=0.9"):
        make_plan(parse([*words, "train.ema=0.9"]))


def test_first_difference_looks_into_sections() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({}, {"a": {}}) is None
    assert first_difference({}, {"a": {"b": 1}}) == ("a.b", None, 1)
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ("a.c", 2, 3)
    assert first_difference({}, {"a": 1}) == ("a", None, 1)


def test_widths_are_scaled_to_equal_parameters() -> None:
    request = parse(["models=toy,deep:toy", "deep.model_cfg.num_layers=3", "match=3e5"])
    entrants, failures = match_widths(request)
    assert failures == {}
    for entrant in entrants:
        assert count(request.resolve(entrant), {}) == pytest.approx(3e5, rel=TOLERANCE)
    wide, deep = (request.resolve(entrant).model_cfg.model_dim for entrant in entrants)
    assert wide > deep > 16


def test_an_entrant_can_be_the_target() -> None:
    request = parse(["models=toy,wide:toy", "wide.model_cfg.model_dim=64", "match=wide"])
    entrants, _ = match_widths(request)
    assert [entrant.overrides for entrant in entrants] == [
        ("model_cfg.model_dim=64",), ("model_cfg.model_dim=64",)
    ]  # fmt: skip


def test_a_size_out_of_reach_is_that_models_failure() -> None:
    members, failures = make_plan(parse(["models=toy", "match=100"]))
    assert members == []
    assert "no width has within 5% of 100 parameters" in failures["toy"]


def test_a_target_must_be_a_number_or_an_entrant() -> None:
    with pytest.raises(ConfigError, match="match=big must be a number of parameters or one of toy"):
        make_plan(parse(["models=toy", "match=big"]))
