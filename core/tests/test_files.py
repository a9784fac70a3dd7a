from __future__ import annotations

import errno
import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest

from nanozoo_core import files
from nanozoo_core.errors import CheckpointError, DataError, NonFiniteError, WriteError
from nanozoo_core.testing.full_disk import full_disk


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a.txt", "caf\xe9\n")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xc3\xa9\n"
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, is_there: bool) -> None:
    path = tmp_path / "a.json"
    if is_there:
        path.write_text("before")
    with full_disk(0), pytest.raises(WriteError, match=r"a.json cannot be written: No space.*free"):
        files.write_json(path, {"a": 1})
    assert names(tmp_path) == (["a.json"] if is_there else [])
    assert not is_there or path.read_text() == "before"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_a_file_is_written_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a"
    path.write_text("before")

    def write() -> None:
        with files.whole_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a"]


def test_what_a_kill_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_remove_quietly", lambda _: None)
        with pytest.raises(KeyboardInterrupt), files.whole_file(path):
            raise KeyboardInterrupt
    assert len(names(tmp_path)) == 2
    (tmp_path / f"{files.UNFINISHED}folder").mkdir()
    (tmp_path / f"{files.UNFINISHED}folder" / "b").write_text("half")
    files.remove_unfinished(tmp_path)
    assert names(tmp_path) == ["a"]
    assert path.read_text() == "before"


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"a.json cannot be written: No such file") as found:
        files.write_json(tmp_path / "x" / "a.json", {})
    assert found.value.errno == errno.ENOENT
    assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_named_and_not_written(
    tmp_path: Path, number: float
) -> None:
    value: dict[str, Any] = {"a": 1.0, "b": [{"c": 2}, {"c": number}]}
    with pytest.raises(NonFiniteError, match=rf"a.json would hold b\[1\].c={number}, which is not"):
        files.write_json(tmp_path / "a.json", value)
    assert names(tmp_path) == []
    assert files.null_if_not_finite(value) == {"a": 1.0, "b": [{"c": 2}, {"c": None}]}


@pytest.mark.parametrize(
    "content",
    [b"", b'{"a": ', b"\xff\xfe", b"[1]", b'{"b": 1}', b'{"a": "x"}', b"null", b"[" * 100_000],
    ids=["empty", "cut", "no text", "list", "other key", "other type", "null", "deep"],
)
def test_a_damaged_file_is_one_sentence_with_its_name_and_the_remedy(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^[^\n]*a.json is damaged [^\n]*; make it again$"):
        files.read_json(
            path, lambda stored: float(stored["a"]), remedy="make it again", error=DataError
        )


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a.json is missing; make it again$"):
        files.read_json(tmp_path / "a.json", dict, remedy="make it again")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_not_finite_is_not_read(tmp_path: Path, constant: str) -> None:
    (tmp_path / "a.json").write_text(f'{{"a": {constant}}}')
    with pytest.raises(NonFiniteError, match=rf"a.json holds {constant}"):
        files.read_json(tmp_path / "a.json", dict, remedy="train again")


def test_lines_are_whole_or_not_there_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with full_disk(2):
        lines = files.JsonLines(path)
        for step in range(2):
            lines.append({"step": step})
        with pytest.raises(WriteError, match=r"a.jsonl cannot be written: No space"):
            lines.append({"step": 2})
        lines.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 0},
        {"step": 1},
    ]
    lines = files.JsonLines(path)
    with pytest.raises(NonFiniteError, match="loss=nan"):
        lines.append({"loss": float("nan")})
    lines.append({"step": 2})
    lines.close()
    assert json.loads(path.read_text().splitlines()[2]) == {"step": 2}
