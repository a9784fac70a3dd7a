from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nanozoo_core.training import records


def test_the_commit_says_whether_the_sources_differ_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *names, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    folder = tmp_path / "core"
    folder.mkdir()
    source = folder / "records.py"
    monkeypatch.setattr(records, "__file__", str(source))
    git("init", "--quiet")
    source.write_text("a = 1\n")
    assert records.git_commit() is None  # nobody tracks it
    git("add", ".")
    git("commit", "--quiet", "-m", "a")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "notes.md").write_text("no source\n")
    assert records.git_commit() == commit
    (tmp_path / "model.py").write_text("new = 1\n")  # a model that no commit has
    assert records.git_commit() == f"{commit}-dirty"
    (tmp_path / "model.py").unlink()
    source.write_text("a = 2\n")
    assert records.git_commit() == f"{commit}-dirty"
