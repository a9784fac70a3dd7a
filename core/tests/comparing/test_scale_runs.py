"""The runs of a ladder: budgets that share a trunk, what they cost, and the whole command."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from nanozoo_core.comparing.compare import member as members
from nanozoo_core.comparing.scale import budgets, command, cost, counting, plan, rate_check
from nanozoo_core.comparing.scale.carry import carried_rates
from nanozoo_core.comparing.scale.ladder import rung_of
from nanozoo_core.comparing.scale.member import train_family
from nanozoo_core.comparing.scale.multiplier import Multiplier
from nanozoo_core.comparing.scale.request import parse
from nanozoo_core.default_model_adapter import DefaultModelAdapter
from nanozoo_core.errors import ConfigError
from nanozoo_core.files import write_json
from nanozoo_core.training.checkpoint import read_tensors
from nanozoo_core.training.run_folder import RunFolder


@pytest.fixture
def words(corpus, tmp_path):
    return [
        *("models=toy", "control=toy", "rungs=0.012", "tokens=7680", "budgets=1/2", "seeds=1"),
        *("data.corpus=text", f"data.path='{corpus}'", f"folder={tmp_path / 'ladder'}"),
        *("log.tensorboard=false", "device=cpu", "dtype=float32"),
    ]


def family_of(words):
    request = parse(words)
    ladder = plan.make_ladder(request)
    found = plan.members_of(request, ladder.places, request.seeds)
    (family,) = plan.families(ladder.places, found, request.seeds)
    return ladder.places[0], family


def test_a_branch_is_its_own_run_to_the_bit(words, tmp_path):
    place, family = family_of(words)
    assert [*place.steps.items()] == [(0.25, 15), (0.5, 30), (1.0, 60)]
    assert [step for _, step in family.forks] == [12, 24]
    train_family(family)
    every = [*(fork for fork, _ in family.forks), family.trunk]
    for member, steps in [*zip(every, place.steps.values(), strict=True)][::2]:
        alone = replace(member, folder=tmp_path / "alone" / member.name)
        members.train_member(alone)
        shared, own = (RunFolder(one.folder) for one in (member, alone))
        assert shared.read_config() == own.read_config()
        for stem in ("model", "optimizer"):
            one, two = (read_tensors(f.checkpoint(steps), stem) for f in (shared, own))
            assert one.keys() == two.keys()
            assert all((one[key] == two[key]).all() for key in one)
        first, second = shared.read_result(), own.read_result()
        for key in ("val_bpb", "steps", "train_tokens", "train_bytes", "train_flops"):
            assert first[key] == second[key]
        assert first["train_tokens"] == steps * 128
    (branch, step), *_ = family.forks
    assert RunFolder(branch.folder).checkpoint_steps()[0] >= step  # it did not train what it shares
    before = RunFolder(branch.folder).checkpoint(15).stat().st_mtime_ns
    train_family(family)
    assert RunFolder(branch.folder).checkpoint(15).stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_trunk_that_was_killed_after_it_stopped_still_gives_its_branch(words):
    """And a branch whose checkpoint the trunk has lost trains on its own."""
    _, family = family_of(words)
    (first, step), (second, later) = family.forks
    members.train_member(family.trunk, stop_after=step)
    train_family(replace(family, trunk=family.trunk, forks=family.forks[:1]))
    assert RunFolder(first.folder).is_finished
    assert RunFolder(family.trunk.folder).is_finished
    assert not RunFolder(family.trunk.folder).checkpoint(later).is_dir()
    train_family(family)
    assert RunFolder(second.folder).read_result()["steps"] == 30


def test_a_model_that_reads_the_progress_has_runs_of_its_own(words, monkeypatch):
    monkeypatch.setattr(DefaultModelAdapter, "is_branchable", lambda *_: False)
    request = parse(words)
    ladder = plan.make_ladder(request)
    found = plan.members_of(request, ladder.places, request.seeds)
    alone = plan.families(ladder.places, found, request.seeds)
    assert len(alone) == 3
    assert all(not one.forks for one in alone)
    place = ladder.places[0]
    assert place.bill_flops == place.alone_flops == place.step_flops * 105


def test_the_bill_of_branches():
    steps = [budgets.steps_for(tokens, 10) for tokens in (1000, 2000, 4000, 8000)]
    assert steps == [100, 200, 400, 800]
    assert budgets.bill(steps, branched=True) == 1.175 * 800
    assert budgets.bill(steps, branched=False) == 1.875 * 800
    assert [budgets.branch_step(n) for n in steps] == [80, 160, 320, 640]
    assert budgets.steps_for(1, 10) == 5
    assert budgets.steps_for(76, 10) == 10


def test_warm_ups_are_the_same_steps_for_all_budgets(words):
    _, family = family_of([*words, "optim.warmup=0.5", "optim.muon.cooldown_steps=40"])
    runs = [family.trunk, *(fork for fork, _ in family.forks)]
    optims = [one.settings["optim"] for one in runs]
    assert all(one == optims[0] for one in optims)
    assert optims[0]["warmup"] == optims[0]["muon"]["warmup_steps"] == 3  # a fifth of 15
    assert optims[0]["muon"]["cooldown_steps"] == 3
    assert optims[0]["decay_fraction"] == 0.2
    assert [one.settings["train"]["max_steps"] for one in runs] == [60, 15, 30]


def test_muon_costs_what_its_products_cost():
    """4 m^2 n + 2 m^3 for each of its iterations, m the shorter side: with d = 128 and 4096 tokens
    in a step, about an eighth of what the layers cost."""
    assert counting.muon_flops((2, 3), 5) == counting.muon_flops((3, 2), 5) == 5 * (48 + 16)
    assert counting.muon_flops((7, 2, 3), 1) == 7 * 64
    d = 128
    layer = 4 * counting.muon_flops((d, d), 5) + 2 * counting.muon_flops((d, 4 * d), 5)
    assert layer == 300 * d**3
    assert layer / (6 * 12 * d**2 * 4096) == pytest.approx(0.13, abs=0.005)


def test_muon_stands_in_the_plan_beside_what_is_counted(words):
    request = parse(words)
    place = plan.make_ladder(request).places[0]
    assert 0 < place.size.counts.muon < 2 * place.step_flops
    percent = f"{place.size.counts.muon / place.step_flops:.0%}"
    line = next(line for line in cost.table(request, plan.Ladder((place,), ()), {"0.012": 1e9})
                .splitlines() if line.startswith("toy"))  # fmt: skip
    assert percent in line.split()
    adamw = request.resolve(request.control, ["optim.name=adamw"])
    assert counting.count_at(adamw).muon == 0


def test_rungs_are_plain_decoders():
    rungs = [rung_of(name) for name in ("0.1", "0.3", "1", "2")]
    shapes = [(one.num_layers, one.model_dim, one.body) for one in rungs]
    assert shapes == [(2, 64, 98304), (3, 96, 331776), (5, 128, 983040), (6, 160, 1843200)]


@pytest.mark.parametrize(
    ("extra", "rates"),
    [
        (["optim.name=muon"], {"adamw.head_lr": 0.0015, "adamw.embedding_lr": 0.003}),
        (["optim.name=adamw", "optim.lr=0.004"], {"lr": 0.002, "adamw.vector_lr": 0.004}),
        (["optim.muon.lr_scale=match_rms_adamw", "optim.muon.lr=0.01"], {"muon.lr": 0.005}),
    ],
)
def test_rates_follow_the_width_by_the_spectral_rule(words, extra, rates):
    request = parse([*words, *extra])
    found = dict(word.split("=") for word in carried_rates(request.resolve(request.control), 2.0))
    for key, rate in rates.items():
        assert float(found[f"optim.{key}"]) == rate
    assert ("optim.muon.lr" in found) == ("muon.lr" in rates)
    assert ("optim.lr" in found) == ("lr" in rates)


def test_what_makes_no_sense_is_refused_in_a_sentence(words):
    with pytest.raises(ConfigError) as caught:
        parse([*words, "train.max_steps=3", "optim.schedule=cosine", "rungs=0,1", "match=size",
               "plan=big", "plan_only=maybe", "init_from=runs/x"])  # fmt: skip
    text = str(caught.value)
    for part in ("'train.max_steps=3': budgets= and tokens= set it", "rungs=0,1 must be posi",
                 "match=size must be one of body, flops", "plan=big", "plan_only=maybe must be",
                 "optim.schedule=cosine", "a comparison trains every model"):  # fmt: skip
        assert part in text
    with pytest.raises(ConfigError, match="nothing to measure"):
        parse([])
    with pytest.raises(ConfigError, match="tokens=7680 must be one number for each of the 2 rungs"):
        parse([*words, "rungs=0.1,1"])
    with pytest.raises(ConfigError, match="two of them are the same"):
        plan.make_ladder(parse([*words, "rungs=0.012,0.013", "tokens=10,20"]))


def test_a_tuned_recipe_is_found_by_the_name_of_its_model(words, tmp_path):
    (folder := tmp_path / "tuned").mkdir()
    for name in ("toy-bytes_1e6.yaml", "toys.yaml"):
        (folder / name).write_text("defaults: [training, {override model: toy}, _self_]\n")
    (entrant, *_) = parse([*words, f"recipes={folder}"]).entrants
    assert entrant.recipe == folder / "toy-bytes_1e6.yaml"
    (folder / "toy.yaml").write_text("")
    with pytest.raises(ConfigError, match="has 2 recipes of toy, toy-bytes_1e6"):
        parse([*words, f"recipes={folder}"])


def test_a_plan_alone_says_the_cost_and_writes_nothing(words, monkeypatch):
    monkeypatch.setattr(cost, "measured_rates", lambda *_: {"0.012": 1e9})
    found = command.scale([*words, "plan_only=true"])
    assert found.verdict is None
    place, _ = family_of(words)
    assert f"bill: {place.bill_flops:.2e} FLOPs with 1 seeds" in str(found)
    assert f"({place.alone_flops:.2e} were every run trained alone)" in str(found)
    assert not found.folder.exists()


def test_the_control_takes_part_without_being_named(words):
    request = parse(["models=wide:toy", *words[1:], "wide.model_cfg.mlp_ratio=5"])
    assert [one.label for one in request.entrants] == ["toy", "wide"]
    ladder = plan.make_ladder(request)
    assert [place.label for place in ladder.places] == ["toy", "wide"]
    bodies = [place.size.counts.body for place in ladder.places]
    assert bodies[1] == pytest.approx(bodies[0], rel=0.06)
    assert [*ladder.places[1].steps] == [0.5]


@pytest.mark.slow
def test_the_whole_command_says_the_cost_first_and_goes_on(words, monkeypatch, capsys):
    """A copy of the control under another name, whose multiplier is 1."""
    monkeypatch.setattr(cost, "measured_rates", lambda *_: {"0.012": 1e9})
    whole = [*words, "models=copy:toy", "budgets=1/2,1", "tokens=1280"]
    whole = [word for n, word in enumerate(whole) if word.split("=")[0] not in
             {later.split("=")[0] for later in whole[n + 1 :]}]  # fmt: skip
    only = command.scale([*whole, "plan_only=true"])
    assert only.verdict is None
    assert "FLOPs with 1 seeds" in str(only)
    assert not only.folder.exists()
    found = command.scale(whole)
    assert not found.failures
    (one,) = found.verdict.against["copy"].compute
    assert one.value == pytest.approx(1, abs=1e-9)
    assert "give seeds=2" in str(found)
    stored = json.loads((found.folder / "scale.json").read_text())
    assert stored["against"]["copy"]["compute"][0]["value"] == one.value
    assert (
        stored["models"]["toy"]["points"]["loss"]
        == found.verdict.estimates["toy"].scores.loss.tolist()
    )
    text = (found.folder / "report.md").read_text()
    assert "a multiplier here is no forecast" in text
    assert (found.folder / "frontier.png").stat().st_size > 1000
    capsys.readouterr()
    assert str(command.scale(whole)) == str(found)
    assert "are there already" in capsys.readouterr().out
    monkeypatch.setattr(cost, "seconds_left", lambda *_: 1.0)
    with pytest.raises(ConfigError, match="more than hours=1e-08"):
        command.scale([*whole, "hours=1e-8"])


@pytest.mark.slow
def test_a_small_plan_takes_the_best_to_the_top_with_fresh_seeds(words, monkeypatch):
    """And checks the rates first. The scores are those of a law in place of trainings; the better
    model is the control as if its weights and its text were twice as many."""
    trained = []

    def run_members(path, members, **_):
        for member in members:
            run = RunFolder(member.folder)
            if run.is_finished:
                continue
            trained.append(member.name)
            settings = member.settings
            tokens = settings["train"]["max_steps"] * settings["train"]["batch_tokens"]
            layers, width = (settings["model_cfg"][key] for key in ("num_layers", "model_dim"))
            size = 12 * layers * width**2
            worth = {"better": 2.0, "worse": 0.5}.get(member.label.split(".")[0], 1.0)
            rate = math.log2(settings["optim"]["muon"]["lr"] / 0.02)
            loss = 1 + (size * worth) ** -0.3 + 20 * (tokens * worth) ** -0.4 + 0.01 * rate**2
            run.path.mkdir(parents=True)
            write_json(member.beside("json"), {"settings": member.settings})
            run.write_result(
                {"val_bpb": loss, "val_bound": "exact", "val_bytes": 9, "data_fingerprint": "x",
                 "train_tokens": tokens, "train_bytes": 3 * tokens, "train_seconds": 1.0,
                 "train_flops": 6 * size * tokens}
            )  # fmt: skip
        return {}

    monkeypatch.setattr(command, "run_members", run_members)
    monkeypatch.setattr(rate_check, "run_members", run_members)
    monkeypatch.setattr(cost, "measured_rates", lambda *_: {"0.012": 1e9, "0.1": 1e9})
    monkeypatch.setattr(command, "BEST", 1)
    asked = {
        **{"models": "better:toy,worse:toy", "rungs": "0.012,0.1", "tokens": "25600,51200"},
        **{"budgets": "1/2,1", "plan": "small", "rates": "checked", "hours": "1"},
    }
    kept = [word for word in words if word.partition("=")[0] not in asked]
    whole = [*kept, *(f"{key}={value}" for key, value in asked.items())]
    found = command.scale(whole)
    assert len([name for name in trained if ".rate" in name]) == 3 * 2 * 3
    ladder = [name for name in trained if ".rate" not in name]
    assert {name for name in ladder if name.startswith("toy.")} == {
        *(f"toy.0.012.{share}_0" for share in ("0.25", "0.5", "1")),
        *(f"toy.0.1.{share}_0" for share in ("0.5", "1", "2")),
    }
    late = [name for name in ladder if ".0.1." in name and not name.startswith("toy.")]
    assert sorted(late) == ["better.0.1.0.5_1", "better.0.1.1_1"]  # the seed 0 has chosen it
    assert ladder.index("better.0.1.1_1") > ladder.index("worse.0.012.1_0")
    assert [one.rung for one in found.verdict.against["worse"].compute] == ["0.012"]
    better = found.verdict.against["better"].compute
    assert better[0].value is None or better[0].value > 1
    page = (found.folder / "report.html").read_text()
    assert "Learning rates" in page
    assert (found.folder / "scale.json").stat().st_size > 1000


def test_a_model_that_the_control_never_reached_ranks_by_its_bound():
    one = Multiplier("1", 1e9, 1.5, 1.2, None, None, np.empty(0))
    assert command.known(one) == 1.2
    assert command.known(replace(one, value=None, bound=(">", 3.0))) == 3.0
    assert command.known(replace(one, value=None)) == 0
