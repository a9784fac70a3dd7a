"""What a comparison takes for its own: members, runs that it is given, and reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanozoo_core.commands.compare import tell
from nanozoo_core.comparing.compare import command
from nanozoo_core.comparing.compare.outputs import FILES
from nanozoo_core.comparing.compare.plan import Member, make_plan
from nanozoo_core.comparing.compare.request import parse
from nanozoo_core.comparing.compare.results import Entry
from nanozoo_core.errors import CheckpointError, ConfigError, NanozooError
from nanozoo_core.files import MARK, claim_output
from nanozoo_core.training.resume import config_to_store
from nanozoo_core.training.run_folder import RunFolder


def words(folder: Path, *more: str) -> list[str]:
    return ["models=toy", "budget=steps:2", "seeds=1", f"folder='{folder}'", *more]


def only_member(folder: Path, *more: str) -> Member:
    return make_plan(parse(words(folder, *more)))[0][0]


def write_run(folder: Path, asked: list[str], **changes: object) -> Path:
    """A finished run with the settings that a comparison asks for, and changes."""
    request = parse(asked)
    resolved = request.resolve(request.entrants[0])
    folder.mkdir(parents=True)
    stored = config_to_store(resolved.training, resolved.model_cfg) | changes
    run = RunFolder(folder)
    run.write_config(stored)
    run.write_result({"val_bpb": 2.0, "seed": stored["seed"]})
    return folder


def test_a_variant_has_no_seed_of_its_own(tmp_path: Path) -> None:
    for word in ("x.seed=7", "++x.seed=7", "x.resume=a", "x.run_dir=b", "x.model=toy"):
        with pytest.raises(ConfigError, match=r"seeds=|resumes its own|folder=|models="):
            parse(["models=toy,x:toy", word])


@pytest.mark.parametrize("word", ["models=", "models=[]", "runs="])
def test_nothing_to_compare_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        parse([word])


def test_a_run_made_by_hand_is_adopted(tmp_path: Path) -> None:
    member = only_member(tmp_path)
    write_run(member.folder, words(tmp_path))
    assert only_member(tmp_path) == member


@pytest.mark.parametrize(
    ("changes", "key"), [({"seed": 5}, "seed=5"), ({"dtype": "bfloat16"}, "dtype=bfloat16")]
)
def test_a_foreign_run_is_not(tmp_path: Path, changes: dict[str, object], key: str) -> None:
    write_run(only_member(tmp_path).folder, words(tmp_path), **changes)
    with pytest.raises(CheckpointError, match=f"was trained with {key}"):
        only_member(tmp_path)


def test_a_run_that_took_a_members_place_is_not(tmp_path: Path) -> None:
    """The note beside the folder tells of the member that was there."""
    member = only_member(tmp_path)
    write_run(member.folder, words(tmp_path), dtype="bfloat16")
    member.beside("json").write_text(json.dumps({"settings": member.settings}))
    with pytest.raises(CheckpointError, match="was trained with dtype=bfloat16"):
        only_member(tmp_path)


def test_foreign_files_are_neither_trained_over_nor_removed(tmp_path: Path) -> None:
    member = only_member(tmp_path)
    member.folder.mkdir(parents=True)
    (member.folder / "thesis.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match="holds files that no comparison wrote"):
        only_member(tmp_path)
    assert (member.folder / "thesis.txt").read_text() == "keep me"


def test_a_run_is_not_two_seeds(tmp_path: Path) -> None:
    asked = words(tmp_path)
    one = write_run(tmp_path / "one", asked)
    copy = write_run(tmp_path / "copy", asked)
    write_run(tmp_path / "other", asked, seed=1)
    (tmp_path / "link").symlink_to(one)

    def check(*runs: str) -> None:
        given = ",".join(f"'{tmp_path / run}'" for run in runs)
        make_plan(parse([f"runs=[{given}]", f"folder='{tmp_path / 'out'}'"]))

    check("one", "other")
    for second in ("one", "link"):
        with pytest.raises(CheckpointError, match="takes part already"):
            check("one", second)
    with pytest.raises(CheckpointError, match="has the settings and the seed of"):
        check("one", copy.name)


def test_a_member_is_not_given_again_as_a_run(tmp_path: Path) -> None:
    member = only_member(tmp_path)
    write_run(member.folder, words(tmp_path))
    with pytest.raises(CheckpointError, match="takes part already"):
        only_member(tmp_path, f"runs='{member.folder}'")


def test_runs_are_looked_at_before_anything_trains(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no finished run"):
        only_member(tmp_path, f"runs='{tmp_path / 'nowhere'}'")


@pytest.mark.parametrize("name", FILES)
def test_others_reports_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"folder=.* holds {name}, which nanozoo compare did not"):
        command.train_members(parse(words(tmp_path)))
    assert (tmp_path / name).read_text() == "mine"


def test_an_own_folder_is_written_again_and_another_by_force(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for _ in range(2):
        claim_output(folder, "nanozoo bench", ("x",), setting="folder", force=False)
        (folder / "x").write_text("")
    for names in ((), ("x",)):
        with pytest.raises(ConfigError, match="--force"):
            claim_output(folder, "nanozoo export", names, setting="--output", force=False)
    claim_output(folder, "nanozoo export", setting="--output", force=True)
    assert (folder / MARK).read_text() == "nanozoo export\n"


def test_when_all_fails_the_report_of_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_members(*_: object, **__: object) -> tuple[list[Entry], dict[str, str]]:
        return [], {"toy_0": "it broke"}

    monkeypatch.setattr(command, "train_members", train_members)
    (tmp_path / "report.md").write_text("before")
    with pytest.raises(NanozooError, match="toy_0: it broke"):
        tell(command.compare(words(tmp_path)))
    assert (tmp_path / "report.md").read_text() == "before"
