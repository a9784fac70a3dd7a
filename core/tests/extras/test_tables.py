"""Tables of text, zstandard, and data sets of the package `datasets`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("pyarrow")
pytest.importorskip("zstandard")

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from nanozoo_core.config import DataConfig, from_defaults
from nanozoo_core.data import formats
from nanozoo_core.data.corpora import text_corpus
from nanozoo_core.data.hub import hub_corpus
from nanozoo_core.data.prepare import prepare
from nanozoo_core.errors import DataError

VALUES = [f"row {n}: caf\u00e9" for n in range(5)]
TEXTS = [value.encode() for value in VALUES]
TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(formats, "ROWS_AT_ONCE", 2)


def read(path: Path, text_key: str = "text") -> list[bytes]:
    return list(text_corpus(str(path), text_key=text_key).documents())


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_every_row_of_parquet_is_a_document(tmp_path: Path, kind: object) -> None:
    values = [*VALUES, "", None]
    table = pa.table({"id": range(7), "text": pa.array(values, pa.string()).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    corpus = text_corpus(str(tmp_path))
    assert list(corpus.documents()) == TEXTS
    assert str(corpus.left_out).startswith("rows without text: 2 (")


@pytest.mark.parametrize("form", ["stream", "file"])
def test_every_row_of_arrow_is_a_document(tmp_path: Path, form: str) -> None:
    table = pa.table({"text": VALUES})
    make = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with make(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert read(tmp_path) == TEXTS


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"data\.text_key=text is not in .*a\.parquet; .*id, body"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"data\.text_key=id holds int64 and no text in .*parquet"):
        read(tmp_path, "id")
    assert read(tmp_path, "body") == [b"x"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_damaged_table_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no table at all")
    with pytest.raises(DataError, match=f"{name} cannot be read as {name[2:]}: "):
        read(tmp_path)


def test_zstandard_is_read(tmp_path: Path) -> None:
    pack = zstandard.ZstdCompressor().compress
    lines = [f'{{"text": "{value}"}}\n'.encode() for value in VALUES]
    # As parallel compressors write it: in several frames.
    (tmp_path / "a.jsonl.zst").write_bytes(pack(b"".join(lines[:2])) + pack(b"".join(lines[2:])))
    assert read(tmp_path) == TEXTS
    (tmp_path / "a.jsonl.zst").write_bytes(b"no archive at all")
    with pytest.raises(DataError, match=r"a\.jsonl\.zst cannot be decompressed \("):
        read(tmp_path)


def test_zstandard_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    text = b"".join(b"%d\n" % n for n in range(10**5))
    packed = zstandard.ZstdCompressor().compress(text)
    (tmp_path / "a.txt.zst").write_bytes(packed)
    assert b"".join(read(tmp_path)) == text
    for size in (len(packed) - 1, len(packed) // 2, 9):
        (tmp_path / "a.txt.zst").write_bytes(packed[:size])
        with pytest.raises(DataError, match=r"cannot be decompressed \(it is cut short\)"):
            read(tmp_path)


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"text": [*VALUES, "more"]}).filter(
        lambda row: "caf" in row["text"]
    )
    data.save_to_disk(tmp_path / "one")
    saved = datasets.load_from_disk(tmp_path / "one")
    saved.map(lambda row: {"text": "cached"})  # beside the tables
    assert len(list((tmp_path / "one").glob("*.arrow"))) == 2
    assert read(tmp_path / "one") == TEXTS
    splits = datasets.DatasetDict(
        {"train": data, "test": datasets.Dataset.from_dict({"text": ["t"]})}
    )
    splits.save_to_disk(tmp_path / "two")
    assert read(tmp_path / "two") == TEXTS
    assert read(tmp_path / "two" / "test") == [b"t"]


# -- by name --------------------------------------------------------------------------------------


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A data set as the hub would have it, with two configurations; a folder is loaded alike."""
    folder = tmp_path / "named"
    folder.mkdir()
    for config in ("small", "large"):
        (folder / config).mkdir()
        pq.write_table(pa.table({"text": VALUES[:4]}), folder / config / "train.parquet")
        pq.write_table(pa.table({"text": VALUES[4:]}), folder / config / "test.parquet")
    configs = [f"- config_name: {name}\n  data_dir: {name}\n" for name in ("small", "large")]
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    return folder


def hub_config(path: object, **changes: object) -> DataConfig:
    return from_defaults(
        DataConfig, corpus="huggingface", path=str(path), tokenizer="bytes", **changes
    )  # type: ignore[arg-type]


def test_a_data_set_by_name_is_loaded_once(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepare(hub_config(f"{named}:small"))
    texts = [*data.source.texts(data.source.train), *data.validation_text(10**6)]
    assert sorted(texts) == TEXTS[:4]
    assert "splits of a data set beside train: 1 (such as test)" in data.summary()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("loaded again"))
    assert prepare(hub_config(f"{named}:small")).fingerprint == data.fingerprint


def test_wrong_names_are_refused(named: Path) -> None:
    with pytest.raises(DataError, match=r"named cannot be loaded .*small.*NAME:CONFIGURATION"):
        prepare(hub_config(named))
    with pytest.raises(DataError, match=r"cannot be loaded .*look at its name and the connection"):
        prepare(hub_config(named / "nowhere"))
    with pytest.raises(DataError, match=r"data\.text_key=body is not in .*; .*text"):
        prepare(hub_config(f"{named}:small", text_key="body"))
    with pytest.raises(DataError, match=r"data\.corpus=huggingface needs data\.path"):
        hub_corpus(None, "text")


def test_missing_packages_are_named_with_their_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("datasets", "pyarrow", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"package datasets; install nanozoo-core\[datasets\]"):
        list(hub_corpus("some/name", "text").documents())
    for name, package in (("a.parquet", "pyarrow"), ("b.txt.zst", "zstandard")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataError, match=rf"package {package}; install nanozoo-core\[formats\]"):
            read(tmp_path / name)
