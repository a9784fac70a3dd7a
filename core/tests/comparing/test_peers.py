"""Which races run, and what becomes of what they find, with scripts that write fixed numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanozoo_core.commands import cli
from nanozoo_core.comparing.peers import command, races
from nanozoo_core.comparing.peers.races import Race, read_races, scripts_folder
from nanozoo_core.comparing.peers.report import HEADER, cells, markdown, rows_of
from nanozoo_core.comparing.peers.request import parse
from nanozoo_core.errors import ConfigError, NanozooError

LIMITS = {
    "peak_flops": {"float32": 2e11, "bfloat16": 1e12},
    "products": {},
    "read_bytes_per_second": 12e9,
}
FOUND = {
    "nanozoo_tokens_per_second": 300.0,
    "them_tokens_per_second": 200.0,
    "ratio": 1.5,
    "ratio_least": 1.4,
    "ratio_most": 1.6,
    "dtype": "bfloat16",
    "peer": "them",
    "peer_form": "float32",
    "peer_forms": {"float32": 1.0, "bfloat16": 0.5},
    "flops_per_second": 2e11,
}
HERE = Race("toy", "them", "race.py")


def script(results: object) -> str:
    """One that writes fixed results, with its own command line beside them."""
    record = {"machine": {"device": "a cpu", "torch": "2.0"}, "results": results}
    return (
        "import json, os, sys\n"
        f"record = json.loads({json.dumps(record)!r})\n"
        "record['argv'] = sys.argv[1:-2]\n"
        "record['threads'] = os.environ['OMP_NUM_THREADS']\n"
        "assert sys.argv[-2] == '--json'\n"
        "json.dump(record, open(sys.argv[-1], 'w'))\n"
    )


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of races; toy is a model that is installed here."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "limits.py").write_text(script(LIMITS))
    (folder / "race.py").write_text(script({"toy": {"tiny": FOUND, "wide": FOUND}}))
    (folder / "lacks.py").write_text("import no_such_module_of_theirs")
    (folder / "breaks.py").write_text("raise ValueError('losses differ')")
    monkeypatch.setattr(command, "scripts_folder", lambda: folder)
    monkeypatch.setenv("PEERS", str(tmp_path / "clones"))
    return folder


def write_races(folder: Path, *entries: str) -> None:
    (folder / "races.toml").write_text("".join(f"[[race]]\n{entry}\n" for entry in entries))


def bench(folder: Path, *words: str) -> dict:
    cli.main(["bench", "--peers", f"folder={folder}", *words])
    return json.loads((folder / "peers.json").read_text())


# -- what a race needs ----------------------------------------------------------------------------


def test_every_race_of_the_repository_has_its_script() -> None:
    folder = scripts_folder()
    found = read_races(folder)
    assert [race.script for race in found if not (folder / race.script).is_file()] == []
    assert len({(race.model, race.peer) for race in found}) == len(found)
    assert all(race.clones or race.packages for race in found)


def test_without_the_repository_the_error_says_where_the_scripts_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "site-packages" / "nanozoo_core" / "comparing" / "peers" / "races.py"
    monkeypatch.setattr(races, "__file__", str(wheel))
    with pytest.raises(ConfigError, match="scripts in its folder core/benchmarks/peers"):
        scripts_folder()


def test_a_missing_clone_is_named_with_its_address_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERS", str(tmp_path))
    race = Race("toy", "them", "race.py", clones={"them": "https://them.example/them"})
    assert race.missing() == f"git clone https://them.example/them {tmp_path / 'them'}"
    (tmp_path / "them").mkdir()
    assert race.missing() is None


def test_a_missing_package_is_named_as_it_is_installed() -> None:
    race = Race("toy", "them", "race.py", packages={"json": "json", "no_such_module": "no-such"})
    assert race.missing() == "uv run --with no-such nanozoo bench --peers"


def test_a_model_that_is_not_installed_does_not_race() -> None:
    assert Race("absent", "them", "race.py").missing() == "the model absent is not installed"


# -- the request ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("races=tox", "races=tox must be of them, toy; did you mean 'toy'?"),
        ("dtype=float64", "dtype=float64 must be of auto, float32, bfloat16"),
        ("rounds=0", "rounds=0 must be a whole number"),
        ("round=3", "nanozoo bench --peers has no round; did you mean 'rounds'?"),
        ("gpt2", "'gpt2' is not key=value"),
    ],
)
def test_what_makes_no_sense_is_refused(word: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse([word], [HERE])
    assert sentence in str(error.value)


def test_races_are_chosen_by_model_or_peer() -> None:
    all_races = [HERE, Race("toy", "others", "race.py"), Race("other", "them", "race.py")]
    assert parse([], all_races).races == tuple(all_races)
    assert parse(["races=others"], all_races).races == (all_races[1],)
    assert parse(["races=toy"], all_races).races == tuple(all_races[:2])


# -- what is found --------------------------------------------------------------------------------


def test_a_row_has_the_share_of_the_peak_of_its_own_dtype() -> None:
    [row] = rows_of(HERE, {"tiny": {"them": FOUND}}, LIMITS)
    assert row["shape"] == "tiny"
    assert row["peak_share"] == pytest.approx(0.2)
    assert (row["tokens_per_second"], row["peer_tokens_per_second"]) == (300, 200)
    [row] = rows_of(HERE, {"tiny": FOUND | {"dtype": "float32"}}, LIMITS)
    assert row["peak_share"] == pytest.approx(1)
    [row] = rows_of(HERE, {"tiny": FOUND | {"flops_per_second": None}}, LIMITS)
    assert row["peak_share"] is None


def test_a_table_has_a_line_for_each_shape_and_for_what_did_not_run() -> None:
    record = {
        "races": rows_of(HERE, {"tiny": FOUND}, LIMITS),
        "not_run": [{"model": "toy", "peer": "others", "why": "no clone"}],
    }
    header, ran, not_run = cells(record)
    assert header == list(HEADER)
    assert ran[:4] == ["toy", "them", "tiny", "1.50 (1.40..1.60)"]
    assert ran[-2:] == ["200 G", "20 %"]
    assert not_run[:3] == ["toy", "others", "not run"]
    assert len({len(line) for line in (header, ran, not_run)}) == 1
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_the_command_runs_what_it_can_and_names_the_rest(
    scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_races(
        scripts,
        'model = "toy"\npeer = "them"\nscript = "race.py"\noptions = ["--peers", "them"]',
        'model = "toy"\npeer = "away"\nscript = "race.py"\nclones = { away = "https://a.example" }',
    )
    record = bench(tmp_path / "out", "rounds=3", "dtype=float32", "shapes=tiny,wide")
    assert [(row["shape"], row["ratio"]) for row in record["races"]] == [
        ("tiny", 1.5),
        ("wide", 1.5),
    ]
    assert record["limits"] == LIMITS
    assert record["machine"]["device"] == "a cpu"
    assert record["threads"] == 1
    assert [race["peer"] for race in record["not_run"]] == ["away"]
    printed = capsys.readouterr().out
    assert "git clone https://a.example" in printed
    assert "1,000 GFLOP/s in bfloat16; reads 12.0 GB/s" in printed


def test_a_script_is_told_its_options_before_those_of_the_command(scripts: Path) -> None:
    request = parse(["rounds=3", "shapes=tiny", "dtype=float32"], [HERE])
    found = command.run_script(scripts / "race.py", ["--peers", "them", *request.arguments])
    expected = ["--peers", "them", "--rounds", "3", "--dtype", "float32", "--shapes", "tiny"]
    assert found["argv"] == expected
    assert found["threads"] == "1"


def test_a_race_that_fails_is_named_and_the_others_are_written(
    scripts: Path, tmp_path: Path
) -> None:
    write_races(
        scripts,
        'model = "toy"\npeer = "broken"\nscript = "breaks.py"',
        'model = "toy"\npeer = "lacking"\nscript = "lacks.py"',
        'model = "toy"\npeer = "them"\nscript = "race.py"',
    )
    with pytest.raises(NanozooError) as error:
        command.race_peers([f"folder={tmp_path / 'out'}"])
    assert "toy beside broken: ValueError: losses differ" in str(error.value)
    assert "uv run --with no_such_module_of_theirs" in str(error.value)
    record = json.loads((tmp_path / "out" / "peers.json").read_text())
    assert len(record["races"]) == 2
    assert [race["peer"] for race in record["not_run"]] == ["broken", "lacking"]
