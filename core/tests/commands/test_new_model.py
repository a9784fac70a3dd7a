from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from nanozoo_core.commands import cli
from nanozoo_core.commands.new import new_model, undo_model
from nanozoo_core.errors import ConfigError

ROOT_PROJECT = """\
[project]
name = "zoo"
dependencies = [
    "nanozoo-core",
    "nanozoo-mod",
    "nanozoo-rd",
]

[tool.uv.workspace]
members = ["core", "packages/*"]

[tool.uv.sources]
nanozoo-core = { workspace = true }
nanozoo-mod = { workspace = true }
nanozoo-rd = { workspace = true }

[tool.mypy]
mypy_path = [
    "core/src",
    "packages/mod/src",
    "packages/rd/src",
]
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with nanozoo-core, as far as `nanozoo new` looks at it."""
    root = tmp_path / "zoo"
    (root / "core").mkdir(parents=True)
    (root / "core" / "pyproject.toml").write_text("")
    (root / "pyproject.toml").write_text(ROOT_PROJECT)
    monkeypatch.chdir(root)
    return root


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("My-Idea", "such as my_idea"),
        ("2fast", "such as fast"),
        ("_", "beginning with a letter"),
        ("a" * 31, "30 at most"),
        ("class", "'class' is a word of Python's own; use another, such as my_class"),
        ("optim", "'optim' has a meaning in nanozoo"),
        ("core", "'core' has a meaning in nanozoo"),
        ("toy", "'toy' is taken by an installed model"),
        ("json", "'json' is a module of Python or of its tools; use another, such as my_json"),
        ("test", "'test' is a module of Python or of its tools"),
        ("torch", "'torch' is an installed package of Python; use another, such as my_torch"),
        ("hydra_core", "'hydra_core' is an installed package"),  # a distribution, not a module
    ],
)
def test_a_bad_name_is_refused_in_one_sentence(
    name: str,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["new", name])
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line
    assert files_below(tmp_path) == set()


def test_a_package_of_its_own_depends_on_the_released_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["new", "fast_idea"])
    project = tomllib.loads((tmp_path / "fast_idea" / "pyproject.toml").read_text())
    assert project["project"]["name"] == "nanozoo-fast-idea"
    version = metadata.version("nanozoo-core")
    assert project["project"]["dependencies"] == [f"nanozoo-core>={version}"]
    assert "sources" not in project["tool"].get("uv", {})
    out = capsys.readouterr().out
    assert "uv pip install -e 'fast_idea[test]'" in out
    assert "train --model fast_idea" in out
    assert files_below(tmp_path) == {
        line.strip() for line in out.split("next:")[0].splitlines()[1:]
    }


@pytest.mark.parametrize("name", ["a", "zebra", "my_2nd_idea"])
def test_every_file_is_rendered_and_imports_are_sorted(name: str, tmp_path: Path) -> None:
    package = new_model(name, folder=tmp_path)
    for path in package.files:
        text = path.read_text()
        assert "$" not in text
        assert "NAME" not in str(path)
        if path.suffix == ".py":
            found = [n for n in ast.parse(text).body if isinstance(n, ast.ImportFrom)]
            own = [n.module for n in found if n.module and n.module.startswith("nanozoo_")]
            assert own == sorted(own)


def test_in_the_workspace_it_has_the_licence_of_the_whole(workspace: Path) -> None:
    (workspace / "LICENSE").write_text("free")
    package = new_model("nsa2", folder=workspace / "packages")
    assert (package.folder / "LICENSE").read_text() == "free"
    project = tomllib.loads((package.folder / "pyproject.toml").read_text())["project"]
    assert project["license-files"] == ["LICENSE"]


def test_in_the_workspace_it_becomes_a_member(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = workspace / "packages"
    inside.mkdir()
    os.chdir(inside)
    cli.main(["new", "nsa2"])
    assert (workspace / "packages" / "nsa2" / "pyproject.toml").is_file()
    assert "override model: nsa2" in (workspace / "configs" / "nsa2.yaml").read_text()
    text = (workspace / "pyproject.toml").read_text()
    project = tomllib.loads(text)
    dependencies = project["project"]["dependencies"]
    assert dependencies == ["nanozoo-core", "nanozoo-mod", "nanozoo-nsa2", "nanozoo-rd"]
    assert list(project["tool"]["uv"]["sources"]) == dependencies
    paths = project["tool"]["mypy"]["mypy_path"]
    assert paths == ["core/src", "packages/mod/src", "packages/nsa2/src", "packages/rd/src"]
    assert [line for line in text.splitlines() if "nsa2" not in line] == ROOT_PROJECT.splitlines()
    assert "uv run nox -s test-nsa2" in capsys.readouterr().out


def test_a_folder_that_is_no_member_makes_a_package_of_its_own(workspace: Path) -> None:
    new_model("idea", folder=Path("elsewhere"))
    assert (workspace / "pyproject.toml").read_text() == ROOT_PROJECT
    assert "nanozoo-core>=" in (workspace / "elsewhere/idea/pyproject.toml").read_text()


def test_what_is_there_is_left_alone(workspace: Path) -> None:
    new_model("idea")
    before = (workspace / "pyproject.toml").read_text()
    with pytest.raises(ConfigError, match="packages/idea exists already"):
        new_model("idea")
    (workspace / "configs" / "other.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"configs/other\.yaml exists already"):
        new_model("other")
    assert (workspace / "pyproject.toml").read_text() == before
    assert not (workspace / "packages" / "other").exists()


def test_a_workspace_of_another_form_is_refused(workspace: Path) -> None:
    text = ROOT_PROJECT.replace("mypy_path", "mypy_paths")
    (workspace / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"pyproject\.toml has no line 'mypy_path = \['"):
        new_model("idea")
    assert not (workspace / "packages").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        new_model("idea", folder=tmp_path / "file")


def everything_below(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def test_undo_leaves_what_was_there_before(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "LICENSE").write_text("free")
    before = everything_below(workspace)
    package = new_model("nsa2")
    caches = package.folder / "src" / "nanozoo_nsa2" / "__pycache__"
    caches.mkdir()
    (caches / "model.pyc").write_text("")
    cli.main(["new", "--undo", "nsa2"])
    assert everything_below(workspace) == before
    assert not package.folder.exists()
    assert "uv sync --all-packages" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="packages/nsa2 holds no package to remove"):
        undo_model("nsa2")


def test_undo_refuses_what_was_changed_and_keeps_what_it_did_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    package = new_model("fast_idea")
    source = package.folder / "src" / "nanozoo_fast_idea"
    with (source / "model.py").open("a") as file:
        file.write("# mine\n")
    (source / "kernel.py").write_text("mine too")
    before = everything_below(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.py changed since .* --force"):
        undo_model("fast_idea")
    assert everything_below(tmp_path) == before
    done = undo_model("fast_idea", force=True)
    assert files_below(tmp_path) == {"fast_idea/src/nanozoo_fast_idea/kernel.py"}
    assert [str(path) for path in done.kept] == sorted(files_below(tmp_path))
    assert "uv pip uninstall nanozoo-fast-idea" in done.describe()


def test_force_without_undo_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["new", "idea", "--force"])
    assert files_below(tmp_path) == set()


@pytest.mark.slow
def test_the_new_model_trains_and_passes_its_tests(
    corpus: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Announced as an installer would; the nox session third-party installs one for real at every
    change, and runs its contract tests too."""
    package = new_model("idea", folder=tmp_path)
    announced = package.folder / "src" / "nanozoo_idea-0.1.0.dist-info"
    announced.mkdir()
    (announced / "METADATA").write_text("Metadata-Version: 2.1\nName: nanozoo-idea\nVersion: 0.1\n")
    entry = "[nanozoo.models]\nidea = nanozoo_idea\n"
    (announced / "entry_points.txt").write_text(entry)
    path = os.pathsep.join([str(package.folder / "src"), os.environ["PYTHONPATH"]])
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "idea/tests/test_idea_model.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert tests.returncode == 0, tests.stdout
    done = command(
        *("train", "--model", "idea", "data.corpus=text", f"data.path='{corpus}'"),
        *("data.tokenizer=bytes", "train.max_steps=2", "train.batch_tokens=512", "eval.bytes=2000"),
        *("run_dir=run", "log.tensorboard=false", "device=cpu"),
        PYTHONPATH=path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").is_file()
