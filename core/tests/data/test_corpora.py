import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from nanozoo_core.data.corpora import (
    document_digest,
    is_utf8,
    pieces,
    stdlib_corpus,
    text_corpus,
    utf8_prefix,
    validation_digests,
)
from nanozoo_core.errors import DataError

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings"}
SOME_TEXT = "one\ntwo: \u00e9\u4e16\U0001f600\n\nlonger line without an end " * 40


def test_stdlib_is_source_text_without_tests_and_tables() -> None:
    corpus = stdlib_corpus()
    root = Path(sysconfig.get_path("stdlib"))
    parts = {part for path in corpus.files for part in path.relative_to(root).parts}
    assert not parts & LEFT_OUT
    assert {path.suffix for path in corpus.files} == {".py"}
    assert "argparse.py" in parts
    assert list(corpus.files) == sorted(corpus.files)


def test_stdlib_holds_enough_and_only_valid_utf8() -> None:
    documents = list(stdlib_corpus().documents())
    assert 5e6 < sum(map(len, documents)) < 20e6
    assert all(is_utf8(document) for document in documents)


def test_folders_are_read_recursively_in_order_without_hidden_and_empty_files(
    tmp_path: Path,
) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for name in ("b/deep/z.txt", "a.md", "b/c.txt", ".git/config", ".hidden"):
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "empty.txt").touch()
    names = [str(path.relative_to(tmp_path)) for path in text_corpus(str(tmp_path)).files]
    assert names == ["a.md", "b/c.txt", "b/deep/z.txt"]


def test_files_folders_and_globs_mix_and_each_file_counts_once(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.py"):
        (tmp_path / name).write_text(name)
    corpus = text_corpus([str(tmp_path / "*.txt"), str(tmp_path / "a.txt"), str(tmp_path)])
    assert [path.name for path in corpus.files] == ["a.txt", "b.txt", "c.py"]
    deep = text_corpus(str(tmp_path.parent / "**" / tmp_path.name / "*.py"))
    assert [path.name for path in deep.files] == ["c.py"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text\0more", "is binary; .*data.corpus=bin"),
        (b"caf\xe9\n", "is not UTF-8; .*iconv"),
    ],
    ids=["binary", "latin-1"],
)
def test_a_file_that_is_named_and_no_text_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "good.txt").write_text("good\n")
    (tmp_path / "bad.txt").write_bytes(content)
    assert b"".join(text_corpus(str(tmp_path)).documents()) == b"good\n"
    assert b"".join(text_corpus(str(tmp_path / "*.txt")).documents()) == b"good\n"
    with pytest.raises(DataError, match=f"data.path: .*bad.txt {message}"):
        list(text_corpus([str(tmp_path), str(tmp_path / "bad.txt")]).documents())


def test_missing_empty_and_unmatched_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"data.path=\S*nowhere does not exist"):
        text_corpus(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"data.path=\S*empty.txt is an empty file"):
        text_corpus(str(tmp_path / "empty.txt"))
    with pytest.raises(DataError, match=r"data.path=\S*\*.rs matches no file"):
        text_corpus(str(tmp_path / "*.rs"))
    with pytest.raises(DataError, match=r"data.path=\S* holds no text"):
        text_corpus(str(tmp_path))
    with pytest.raises(DataError, match=r"data.corpus=text needs data.path"):
        text_corpus(None)


def test_invalid_utf8_is_legal_where_the_tokenizer_reads_bytes(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    corpus = text_corpus(str(tmp_path), allow_invalid_utf8=True)
    assert b"".join(corpus.documents()) == b"caf\xe9\n"


@pytest.mark.parametrize("size", [64, 100, 1000])
def test_pieces_are_the_text_cut_after_lines_and_between_characters(size: int) -> None:
    text = SOME_TEXT.encode()
    parts = list(pieces([text], size))
    assert b"".join(parts) == text
    assert all(0 < len(part) <= size and is_utf8(part) for part in parts)
    assert all(part.endswith(b"\n") for part in parts[:-1])


def test_pieces_without_line_breaks_end_between_characters() -> None:
    text = ("\u4e16" * 200).encode()
    parts = list(pieces([text], 64))
    assert b"".join(parts) == text
    assert {len(part) for part in parts[:-1]} == {63}


@pytest.mark.parametrize("num_bytes", range(3, 40))
def test_utf8_prefix_is_the_longest_whole_one(num_bytes: int) -> None:
    text = "ab\u00e9\u4e16\U0001f600cd\u00e9\U0001f600xyz\u4e16\u4e16\u4e16\u4e16"
    whole = max(
        (text[:n].encode() for n in range(len(text) + 1) if len(text[:n].encode()) <= num_bytes),
        key=len,
    )
    assert utf8_prefix(text.encode(), num_bytes) == whole


def test_split_of_a_document_does_not_depend_on_the_others() -> None:
    digests = [document_digest(b"%d" % number) for number in range(2000)]
    whole = validation_digests(digests, 0.1)
    part = validation_digests(digests[::3], 0.1)
    assert part == whole & set(digests[::3])
    assert 150 <= len(whole) <= 250  # 200 expected, standard deviation 13.4


def test_smaller_validation_fraction_is_part_of_a_larger() -> None:
    digests = [document_digest(b"%d" % number) for number in range(500)]
    assert validation_digests(digests, 0.05) < validation_digests(digests, 0.2)


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_both_sides_of_a_split_have_a_document(fraction: float) -> None:
    digests = [document_digest(b"a"), document_digest(b"b"), document_digest(b"a")]
    assert len(validation_digests(digests, fraction)) == 1


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(DataError, match="too little text"):
        validation_digests([document_digest(b"a")] * 2, 0.1)


def test_data_modules_load_without_torch() -> None:
    code = (
        "import sys, nanozoo_core.data.prepare, nanozoo_core.data.windows;"
        "sys.exit('torch' in sys.modules or 'tiktoken' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
