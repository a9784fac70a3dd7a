"""Files of rows, compressed files, and what of a folder is read."""

import gzip
import json
from pathlib import Path

import pytest

from nanozoo_core.data import corpora, formats
from nanozoo_core.data.corpora import text_corpus
from nanozoo_core.errors import DataError

ROWS = [{"text": f"row {n}: caf\u00e9\n", "id": n} for n in range(3)]
TEXTS = [str(row["text"]).encode() for row in ROWS]


def json_lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(path: Path, text_key: str = "text") -> list[bytes]:
    return list(text_corpus(str(path), text_key=text_key).documents())


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.JSONL", "a.jsonl.gz"])
def test_every_row_of_json_lines_is_a_document(tmp_path: Path, name: str) -> None:
    content = json_lines(ROWS).replace(b"\n", b"\r\n\r\n")  # other line ends, and empty lines
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(tmp_path / name) == TEXTS
    assert read(tmp_path) == TEXTS


@pytest.mark.parametrize(
    "content",
    [
        b'{\n "text": 1\n}\n',
        b'{"name": "one line"}\n',
        b'[{"text": "a"},\n{"text": "b"}]',
        b"1\n2\n",
    ],
    ids=["indented", "one line", "array", "numbers"],
)
def test_other_json_is_plain_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    corpus = text_corpus(str(tmp_path / "a.json"))
    assert b"".join(corpus.documents()) == content
    assert corpus.description == "1 files of text"


def test_a_single_object_with_the_key_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(json_lines(ROWS[:1]))
    assert read(tmp_path) == TEXTS[:1]
    assert text_corpus(str(tmp_path)).description == "1 files of text (1 of JSON lines)"


def test_compressed_text_is_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"some text\n" * 9))
    assert b"".join(read(tmp_path)) == b"some text\n" * 9


def test_the_key_of_the_text_is_a_setting(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"content": "yes", "text": "no"}]))
    assert read(tmp_path, "content") == [b"yes"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            b'{"body": "x", "id": 1}',
            r"data\.text_key=text is not in line 4 of .*a\.jsonl; .*body, id",
        ),
        (b'{"text": ["x"]}', r"data\.text_key=text holds a list and no text in line 4 of"),
        (b'{"text": "cut', r"a\.jsonl is no JSON object in line 4;"),
        (b"[1]", r"a\.jsonl is no JSON object in line 4;"),
        (b'{"text": "caf\xe9"}', r"a\.jsonl is no JSON object in line 4;"),
    ],
    ids=["key", "type", "cut", "array", "latin-1"],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, row: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(ROWS) + row)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_rows_without_text_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": None}, {"text": ""}]
    (tmp_path / "a.jsonl").write_bytes(json_lines(rows) + b'{"text": "\\ud800"}\n')
    corpus = text_corpus(str(tmp_path))
    for _ in range(2):  # counted anew in each pass
        assert list(corpus.documents()) == TEXTS
        assert str(corpus.left_out).startswith("rows without text: 3 (such as /")


@pytest.mark.parametrize("harm", ["end", "beginning", "all"])
def test_a_damaged_archive_is_refused(tmp_path: Path, harm: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    packed = gzip.compress(b'{"text": "a"}\n')
    content = {"end": packed[:-9], "beginning": packed[:12], "all": b"no gzip"}[harm]
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jsonl\.gz cannot be decompressed .* again"):
        read(tmp_path)


# -- folders of all sorts of files ----------------------------------------------------------------


@pytest.mark.parametrize("num_texts", [1, 19, 20, 30])
def test_what_is_no_text_is_left_out_and_counted(tmp_path: Path, num_texts: int) -> None:
    for n in range(25):
        (tmp_path / f"{n}.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0" + bytes([n]))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "cut.txt").write_bytes("caf\u00e9".encode()[:-1])
    content = {f"x{n:02d}.txt": f"text {n}\n".encode() * 40 for n in range(num_texts)}
    for name, text in content.items():
        (tmp_path / name).write_bytes(text)
    corpus = text_corpus(str(tmp_path))
    documents = list(corpus.documents())
    assert b"".join(documents) == b"".join(content.values())
    assert (len(documents) == num_texts) == (num_texts >= 20)  # fewer are cut
    assert dict(corpus.left_out.counts) == {"binary files": 25, "files that are not UTF-8": 2}
    assert "binary files: 25 (such as /" in str(corpus.left_out)


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0\1")
    with pytest.raises(DataError, match=r"no text to read \(binary files: 1 .*data\.corpus=bin"):
        read(tmp_path)
    (tmp_path / "b.txt").write_bytes(b"\xe9\n")
    with pytest.raises(DataError, match=r"not UTF-8: 1 .*iconv.*data\.tokenizer=bytes"):
        read(tmp_path)
    (tmp_path / "c.jsonl").write_bytes(b'{"text": null}')
    with pytest.raises(DataError, match="rows without text: 1"):
        read(tmp_path)


@pytest.mark.parametrize("size", [64, 1000])
def test_pieces_do_not_depend_on_the_blocks_that_a_file_is_read_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    text = ("one\ntwo: \u00e9\u4e16\U0001f600\n\n" + "long " * 300) * 40
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr(corpora, "PIECE_BYTES", size)
    whole = read(tmp_path)
    monkeypatch.setattr(formats, "BLOCK_BYTES", 7)
    assert read(tmp_path) == whole
    assert b"".join(whole) == text.encode()


# -- saved data sets ------------------------------------------------------------------------------


def save_table(folder: Path, *, stray: bool = False) -> None:
    """As save_to_disk does, with empty files for tables."""
    folder.mkdir(parents=True)
    (folder / "data-00000-of-00001.arrow").write_bytes(b"-")
    (folder / "dataset_info.json").write_text('{"features": {}}')
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    if stray:
        (folder / "cache-12ab.arrow").write_bytes(b"-")


def test_of_a_saved_data_set_its_tables_are_read(tmp_path: Path) -> None:
    save_table(tmp_path / "set", stray=True)
    corpus = text_corpus(str(tmp_path))
    assert [path.name for path in corpus.files] == ["data-00000-of-00001.arrow"]


def test_of_several_splits_train_is_read_and_the_others_are_counted(tmp_path: Path) -> None:
    for split in ("train", "test", "validation"):
        save_table(tmp_path / "set" / split)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    corpus = text_corpus(str(tmp_path))
    assert [path.parent.name for path in corpus.files] == ["train"]
    assert [path.name for path in corpus.splits] == ["test", "validation"]
    only = text_corpus(str(tmp_path / "set" / "test"))
    assert [path.parent.name for path in only.files] == ["test"]
    (tmp_path / "set" / "train").rename(tmp_path / "set" / "all")
    assert len(text_corpus(str(tmp_path)).files) == 3
