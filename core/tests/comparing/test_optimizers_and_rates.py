"""What a comparison says of optimisers and learning rates, and how it chooses the rates."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanozoo_core.comparing.compare import command, rates
from nanozoo_core.comparing.compare.member import settings_for
from nanozoo_core.comparing.compare.page import page
from nanozoo_core.comparing.compare.plan import Member
from nanozoo_core.comparing.compare.ranking import by_optimizer, rank
from nanozoo_core.comparing.compare.report import Report, markdown
from nanozoo_core.comparing.compare.request import Request, parse
from nanozoo_core.comparing.compare.results import Entry, collect
from nanozoo_core.comparing.compare.tables import results_csv
from nanozoo_core.comparing.entrants import Entrant
from nanozoo_core.errors import ConfigError
from nanozoo_core.training.resume import config_to_store
from nanozoo_core.training.run_folder import RunFolder

RESULT = {
    "params": 1000, "val_bound": "exact", "val_bytes": 1000, "val_tokens": 1000,
    "data_fingerprint": "abc", "train_bytes": 5000, "train_seconds": 2.0, "device": "cpu",
}  # fmt: skip


def write_run(folder: Path, settings: dict[str, Any], bpb: float) -> Path:
    """A finished run without its training."""
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    run.write_config(settings)
    run.write_result(RESULT | {"val_bpb": bpb, "seed": settings["seed"]})
    (folder / "metrics.jsonl").touch()
    return folder


def entries(tmp_path: Path, **optimizers_and_scores: tuple[str, Sequence[float]]) -> list[Entry]:
    """One entry for each label, with a run for each score."""
    folders = [
        write_run(
            tmp_path / f"{label}_{seed}",
            {"model": label, "seed": seed, "data": {"seq_len": 32}, "optim": {"name": name}},
            bpb,
        )
        for label, (name, bpbs) in optimizers_and_scores.items()
        for seed, bpb in enumerate(bpbs)
    ]
    return collect([], tuple(folders))[0]


MIXED: dict[str, tuple[str, Sequence[float]]] = {
    "ngpt": ("adamw", (1.70, 1.71)),
    "vanilla": ("muon", (1.60, 1.61)),
    "adam": ("adamw", (1.90, 1.91)),
    "gpt2": ("muon", (1.80, 1.81)),
}


def test_those_of_one_optimiser_are_ranked_apart_as_well(tmp_path: Path) -> None:
    (group,) = rank(entries(tmp_path, **MIXED))
    assert [place.entry.label for place in group.places] == ["vanilla", "ngpt", "gpt2", "adam"]
    blocks = {
        block.optimizer: [(place.entry.label, place.rank) for place in block.places]
        for block in by_optimizer(group)
    }
    assert blocks == {
        "muon": [("vanilla", "1"), ("gpt2", "2")], "adamw": [("ngpt", "1"), ("adam", "2")]
    }  # fmt: skip


def test_no_block_of_one_entry_and_none_where_all_have_one_optimiser(tmp_path: Path) -> None:
    (group,) = rank(entries(tmp_path / "a", **{k: MIXED[k] for k in ("ngpt", "adam", "gpt2")}))
    assert [block.optimizer for block in by_optimizer(group)] == ["adamw"]
    (group,) = rank(entries(tmp_path / "b", **{k: MIXED[k] for k in ("ngpt", "adam")}))
    assert by_optimizer(group) == []


def test_bounds_stay_apart_from_exact_scores_within_an_optimiser(tmp_path: Path) -> None:
    found = entries(tmp_path, **MIXED)
    for run in found[0].runs:
        run.result["val_bound"] = "upper"
    report = Report("x", "nanozoo compare", found, {})
    assert [
        (g.is_bound, g.optimizer, [place.entry.label for place in g.places]) for g in report.tables
    ] == [
        (False, None, ["vanilla", "gpt2", "adam"]),
        (False, "muon", ["vanilla", "gpt2"]),
        (True, None, ["ngpt"]),
    ]


def test_the_report_names_optimisers_and_has_the_blocks_below_the_ranking(tmp_path: Path) -> None:
    report = Report("x", "nanozoo compare x", entries(tmp_path, **MIXED), {})
    text = markdown(report)
    blocks = re.split(r"^##+ ", text, flags=re.MULTILINE)[1:]
    titles = [block.splitlines()[0] for block in blocks]
    assert titles[:3] == [
        "Exact scores",
        "Exact scores, only models trained with Muon",
        "Exact scores, only models trained with AdamW",
    ]
    header = blocks[0].splitlines()[2]
    place = header.split(" | ").index("optimiser")
    lines = [line.split(" | ") for line in blocks[0].splitlines()[4:8]]
    assert [(line[1], line[place]) for line in lines] == [
        ("vanilla", "muon"), ("ngpt", "adamw"), ("gpt2", "muon"), ("adam", "adamw")
    ]  # fmt: skip
    assert re.findall(r"^\| 1 \| (\w+) \|", blocks[2], re.MULTILINE) == ["ngpt"]
    assert "trained by different optimisers, AdamW and Muon" in text
    html = page(report)
    assert titles[1] in html
    assert "trained by different optimisers, AdamW and Muon" in html
    alike = Report("x", "nanozoo compare x", report.entries[:1], {})
    assert "different optimisers" not in markdown(alike)


def test_results_name_the_optimiser(tmp_path: Path) -> None:
    rows = list(csv.DictReader(results_csv(entries(tmp_path, **MIXED)).splitlines()))
    assert {row["label"]: row["optimizer"] for row in rows} == {
        label: name for label, (name, _) in MIXED.items()
    }


# -- learning rates -------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["1", "1,1", "0,1", "1,-2", "1,x", "true,1", "1,.inf"])
def test_factors_that_make_no_sense_are_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"rate_factors=.* must be at least two positive numbers"):
        parse(["models=toy", f"rate_factors={given}"])


def test_a_factor_acts_on_the_rates_that_the_optimiser_uses() -> None:
    words = [
        *("models=toy,adam:toy", "optim.lr=0.01", "optim.muon.lr=0.02", "rate_factors=0.5,1"),
        *("adam.optim.name=adamw", "optim.adamw.embedding_lr=0.3"),
    ]
    muon, adam = rates.first_tries(parse(words))
    assert [e.label for e in muon.at_factor.values()] == ["toy.x0.5", "toy.x1"]
    halved = ("optim.lr=0.005", "optim.adamw.embedding_lr=0.15")
    own = ("optim.lr=0.01", "optim.adamw.embedding_lr=0.3")
    assert muon.at_factor[0.5].overrides == (*halved, "optim.muon.lr=0.01")
    assert muon.at_factor[1.0].overrides == (*own, "optim.muon.lr=0.02")
    assert adam.at_factor[0.5].overrides == ("optim.name=adamw", *halved)


def train_at_once(
    members: list[Member], score: dict[tuple[str, float], float], trained: list[str]
) -> dict[str, str]:
    """Stands in for the trainings: scores by (variant, rate), a failure where there is none."""
    failures = {}
    for member in members:
        rate = member.settings["optim"]["lr"]
        bpb = score.get((member.label.split(".")[0], rate))
        if bpb is None:
            failures[member.name] = "it broke"
        elif not RunFolder(member.folder).is_finished:
            trained.append(member.name)
            asked = settings_for(member)
            assert asked is not None
            settings = config_to_store(asked.training, asked.model_cfg)
            write_run(member.folder, settings, bpb + member.seed / 100)
    return failures


SCORES = {
    ("toy", 0.01): 2.0, ("toy", 0.02): 1.8, ("toy", 0.04): 1.9,
    ("wide", 0.01): 1.7, ("wide", 0.02): 1.75,
}  # fmt: skip


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def run(_: Path, members: list[Member], **__: object) -> dict[str, str]:
        return train_at_once(members, SCORES, names)

    monkeypatch.setattr(command, "run_members", run)
    return names


def tuned_words(folder: Path) -> list[str]:
    return [
        *("models=toy,wide:toy", "wide.model_cfg.model_dim=32", "optim.lr=0.02", "seeds=0,3"),
        *("optim.name=adamw", "rate_factors=0.5,1,2", f"folder='{folder}'"),
    ]


def test_the_first_seed_tries_all_rates_and_the_best_trains_the_others(
    tmp_path: Path, trained: list[str]
) -> None:
    request = parse(tuned_words(tmp_path))
    assert command.title(request).endswith("each, at the best of 3 learning rates")
    found, failures = command.train_members(request)
    assert trained == [
        *("toy.x0.5_0", "toy.x1_0", "toy.x2_0", "wide.x0.5_0", "wide.x1_0"),
        *("toy.x1_3", "wide.x0.5_3"),
    ]
    assert failures == {"wide.x2_0": "it broke"}
    toy, wide = found
    assert (toy.label, toy.tried) == ("toy", {0.5: 2.0, 1.0: 1.8, 2.0: 1.9})
    assert toy.bpbs == pytest.approx([1.8, 1.83])
    assert (wide.label, wide.tried) == ("wide", {0.5: 1.7, 1.0: 1.75})
    assert wide.bpbs == pytest.approx([1.7, 1.73])
    assert {run.label for entry in found for run in entry.runs} == {"toy", "wide"}
    assert "optim.lr=0.01" in wide.runs[1].command

    text = markdown(Report("x", "nanozoo compare x", found, failures))
    tried = text.split("## Learning rates tried")[1].split("\n\n")[1].splitlines()
    assert tried[2:] == [
        "| toy | 0.02 | 2.000 | 1.800 | 1.900 |", "| wide | 0.01 | 1.700 | 1.750 | failed |"
    ]  # fmt: skip
    assert "The best learning rate of wide is the lowest tried" in text
    assert "learning rate of toy is" not in text
    html = page(Report("x", "nanozoo compare x", found, failures))
    assert "<td>failed</td>" in html
    assert "The best learning rate of wide is the lowest tried" in html


def test_a_model_that_fails_at_every_rate_leaves_the_others(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in (("wide", 0.01), ("wide", 0.02)):
        monkeypatch.delitem(SCORES, key)
    found, failures = command.train_members(parse([*tuned_words(tmp_path), "seeds=1"]))
    assert [entry.label for entry in found] == ["toy"]
    assert set(failures) == {"wide.x0.5_0", "wide.x1_0", "wide.x2_0"}


def test_widths_are_matched_once_before_rates_are_tried(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def matched(request: Request) -> tuple[tuple[Entrant, ...], dict[str, str]]:
        assert request.match == "wide"
        toy, _ = request.entrants
        return (replace(toy, overrides=("model_cfg.model_dim=48",)),), {"wide": "no width"}

    monkeypatch.setattr(command, "match_widths", matched)
    found, failures = command.train_members(
        parse([*tuned_words(tmp_path), "match=wide", "seeds=1"])
    )
    assert [entry.config["model_cfg"]["model_dim"] for entry in found] == [48]
    assert failures == {"wide": "no width"}
