import errno
import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nanozoo_core.config import DataConfig, from_defaults
from nanozoo_core.data import corpora
from nanozoo_core.data.cache import build_once, cache_root
from nanozoo_core.data.prepare import PreparedData, prepare
from nanozoo_core.data.shards import write_shard
from nanozoo_core.data.tokenizers import ByteTokenizer, save_tokenizer, train_bpe
from nanozoo_core.errors import DataError


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Thirty different files."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.txt").write_text(f"file {number}: caf\u00e9\n" * (number + 3))
    return folder


def text_config(path: Path, **changes: object) -> DataConfig:
    settings = {"corpus": "text", "path": str(path), "vocab_size": 270, "val_fraction": 0.3}
    return from_defaults(DataConfig, **(settings | changes))  # type: ignore[arg-type]


def training_texts(data: PreparedData) -> list[bytes]:
    return list(data.source.texts(data.source.train))


# -- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_split_is_the_corpus_without_overlap(texts: Path, tokenizer: str) -> None:
    data = prepare(text_config(texts, tokenizer=tokenizer))
    train, validation = training_texts(data), data.validation_text(10**6)
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(path.read_bytes() for path in texts.iterdir())
    assert data.train_bytes == sum(map(len, train))
    assert data.validation_bytes == sum(map(len, validation))


def test_token_shards_hold_the_training_text(texts: Path) -> None:
    data = prepare(text_config(texts, tokenizer="bpe"))
    tokens = np.concatenate([shard.tokens for shard in data.train])
    assert data.vocabulary.decode_bytes(tokens) == b"".join(training_texts(data))
    assert (tokens == data.vocabulary.separator).sum() == len(training_texts(data))
    assert tokens[0] == data.vocabulary.separator
    assert data.train_tokens == tokens.size


def test_fingerprint_is_of_the_text_and_split_alone(texts: Path, tmp_path: Path) -> None:
    first = prepare(text_config(texts, tokenizer="bytes"))
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for path in texts.iterdir():
        (copy / f"renamed_{99 - int(path.stem)}.md").write_bytes(path.read_bytes())
    assert prepare(text_config(texts)).fingerprint == first.fingerprint
    assert prepare(text_config(copy)).fingerprint == first.fingerprint
    assert prepare(text_config(texts, val_fraction=0.5)).fingerprint != first.fingerprint
    (texts / "00.txt").write_text("another text\n")
    assert prepare(text_config(texts)).fingerprint != first.fingerprint


def test_validation_text_is_the_same_for_every_tokenizer_and_grows_by_prefix(texts: Path) -> None:
    tokens, letters = (prepare(text_config(texts, tokenizer=name)) for name in ("bpe", "bytes"))
    whole = b"".join(letters.validation_text(10**6))
    for num_bytes in (1, 10, 17, 200, 500):
        text = tokens.validation_text(num_bytes)
        assert text == letters.validation_text(num_bytes)
        assert whole.startswith(b"".join(text))
        assert num_bytes - 1 <= sum(map(len, text)) <= num_bytes
        assert corpora.is_utf8(b"".join(text))


def test_the_halves_of_the_validation_text_are_disjoint_and_all_of_it(texts: Path) -> None:
    tokens, letters = (
        prepare(text_config(texts, tokenizer=name, val_fraction=0.6)) for name in ("bpe", "bytes")
    )
    whole = letters.validation_text(10**6)
    halves = {split: letters.validation_text(10**6, split) for split in ("tune", "test")}
    assert sorted(halves["tune"] + halves["test"]) == sorted(whole)
    assert not set(halves["tune"]) & set(halves["test"])
    for split, half in halves.items():
        assert half == [document for document in whole if document in half]
        assert tokens.validation_text(10**6, split) == half
        assert b"".join(half).startswith(b"".join(tokens.validation_text(40, split)))
        # A document stays in its half when the validation text grows.
        fewer = prepare(text_config(texts, tokenizer="bytes", val_fraction=0.3))
        assert set(fewer.validation_text(10**6, split)) <= set(half)
    assert tokens.validation_text(300, "all") == tokens.validation_text(300)


def test_a_half_without_a_document_is_refused(shard_folder: Path) -> None:
    write_shard(shard_folder / "web_val_000000.bin", [256, *b"five"])
    data = prepare(bin_config(shard_folder))
    other = {"tune": "test", "test": "tune"}[corpora.split_of(b"five")]
    with pytest.raises(DataError, match=rf"eval\.split={other} holds no document of bin"):
        data.validation_text(4, other)


def test_first_validation_bytes_do_not_depend_on_the_fraction(texts: Path) -> None:
    small, large = (prepare(text_config(texts, val_fraction=f)) for f in (0.3, 0.6))
    num_bytes = small.validation_bytes
    assert large.validation_text(num_bytes) == small.validation_text(num_bytes)


def test_too_many_validation_bytes_are_all_there_are_with_a_warning(
    texts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = prepare(text_config(texts))
    with caplog.at_level(logging.WARNING):
        text = data.validation_text(10**9)
    assert sum(map(len, text)) == data.validation_bytes
    assert "eval.bytes=1000000000" in caplog.text


@pytest.mark.parametrize("num_lines", [2, 40, 5000])
def test_single_file_is_split_too(tmp_path: Path, num_lines: int) -> None:
    path = tmp_path / "one.txt"
    path.write_text("".join(f"line {n} of a longer text in one file\n" for n in range(num_lines)))
    data = prepare(text_config(path, tokenizer="bytes", val_fraction=0.1))
    train, validation = training_texts(data), data.validation_text(10**9)
    assert train
    assert validation
    assert data.train_bytes + data.validation_bytes == path.stat().st_size
    if num_lines == 5000:
        assert 0.02 < data.validation_bytes / path.stat().st_size < 0.25


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("hello")
    with pytest.raises(DataError, match="too little text to split"):
        prepare(text_config(tmp_path / "one.txt"))


@pytest.mark.parametrize("order", [("bytes", "bpe"), ("bpe", "bytes")], ids="-".join)
def test_invalid_utf8_is_read_for_bytes_and_left_out_for_tokens(
    texts: Path, order: tuple[str, str]
) -> None:
    (texts / "latin.txt").write_bytes(b"caf\xe9\n")
    found = {}
    for tokenizer in (*order, *order):
        said: list[str] = []
        data = prepare(text_config(texts, tokenizer=tokenizer), progress=said.append)
        found[tokenizer] = training_texts(data) + data.validation_text(10**6)
        if tokenizer == "bpe":  # told again where nothing is built
            (line,) = (line for line in said if line.startswith("left out of text: "))
            assert "files that are not UTF-8: 1 (such as /" in line
            assert line.removeprefix("left out of text: ") in data.summary()
        else:
            assert "left out" not in "".join([*said, data.summary()])
    assert sorted(found["bytes"]) == sorted([*found["bpe"], b"caf\xe9\n"])


def test_stdlib_needs_no_settings() -> None:
    data = prepare(from_defaults(DataConfig, tokenizer="bytes"))
    assert data.train_bytes > 5e6
    assert sum(map(len, data.validation_text(400_000))) == 400_000
    assert "stdlib" in data.summary()


@pytest.mark.slow
def test_stdlib_tokens_are_worth_about_four_bytes() -> None:
    assert 3.5 < prepare(from_defaults(DataConfig)).bytes_per_token < 4.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpus": "stdlb"}, r"data\.corpus=stdlb is unknown; .*did you mean 'stdlib'\?"),
        ({"path": "x"}, r"data\.path=x has no effect with data\.corpus=stdlib"),
        ({"corpus": "bin"}, r"data\.corpus=bin needs data\.path"),
        ({"corpus": "bin", "path": "nowhere"}, r"data\.path=nowhere does not exist"),
        ({"corpus": "fineweb10B"}, r"run `nanozoo prepare fineweb10B` once"),
    ],
    ids=["corpus", "path", "no path", "missing", "fineweb"],
)
def test_wrong_setting_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(from_defaults(DataConfig, **settings))  # type: ignore[arg-type]


# -- shards -------------------------------------------------------------------------------------


@pytest.fixture
def shard_folder(tmp_path: Path) -> Path:
    """Bytes shards: two of training, one of validation."""
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "web_train_000001.bin", [256, *b"one two", 256, *b"three"])
    write_shard(folder / "web_train_000002.bin", [256, *b"four"])
    write_shard(folder / "web_val_000000.bin", [256, *b"caf\xc3\xa9", 256, *b"end"])
    return folder


def bin_config(path: Path | list[str], tokenizer: str = "bytes") -> DataConfig:
    place = [str(p) for p in path] if isinstance(path, list) else str(path)
    return from_defaults(DataConfig, corpus="bin", path=place, tokenizer=tokenizer)  # type: ignore[arg-type]


def test_shards_on_disk_are_used_as_they_are(shard_folder: Path) -> None:
    data = prepare(bin_config(shard_folder))
    assert [shard.path.name for shard in data.train] == [
        "web_train_000001.bin",
        "web_train_000002.bin",
    ]
    assert training_texts(data) == [b"one two", b"three", b"four"]
    assert (data.train_tokens, data.train_bytes) == (19, 16)
    assert data.validation_text(8) == [b"caf\xc3\xa9", b"end"]
    assert data.validation_text(4) == [b"caf"]


def test_shards_may_be_listed(shard_folder: Path) -> None:
    names = ["web_val_000000.bin", "web_train_000002.bin"]
    data = prepare(bin_config([str(shard_folder / name) for name in names]))
    assert training_texts(data) == [b"four"]
    assert data.fingerprint != prepare(bin_config(shard_folder)).fingerprint


def test_shards_of_a_trained_vocabulary_lie_beside_it(tmp_path: Path) -> None:
    vocabulary = train_bpe(["one two three four"], vocab_size=260)
    for name, text in (("train", "one two"), ("val", "three two one")):
        write_shard(tmp_path / f"{name}.bin", [259, *vocabulary.encode(text)])
    with pytest.raises(DataError, match=r"finds no tokenizer\.json"):
        prepare(bin_config(tmp_path, "bpe"))
    save_tokenizer(vocabulary, tmp_path)
    assert prepare(bin_config(tmp_path, "bpe")).validation_text(100) == [b"three two one"]


def test_id_beyond_the_vocabulary_is_refused(shard_folder: Path) -> None:
    write_shard(shard_folder / "web_train_000003.bin", [256, 258])
    with pytest.raises(DataError, match=r"train_000003\.bin has the id 258, .*only 0 to 257"):
        prepare(bin_config(shard_folder))


@pytest.mark.parametrize("part", ["train", "val"])
def test_missing_side_of_the_split_is_refused(shard_folder: Path, part: str) -> None:
    for path in shard_folder.glob(f"*{part}*"):
        path.unlink()
    with pytest.raises(DataError, match=f"has no shard with '{part}' in its name"):
        prepare(bin_config(shard_folder))


def test_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no \.bin shard"):
        prepare(bin_config(tmp_path))


# -- the cache folder ---------------------------------------------------------------------------


def test_second_call_builds_nothing(texts: Path) -> None:
    said: list[str] = []
    prepare(text_config(texts), progress=said.append)
    assert len(said) == 3
    prepare(text_config(texts), progress=said.append)
    assert len(said) == 3


@pytest.mark.parametrize(
    "name", ["text/*/val_*.bin", "text/*/train_*.bin", "tokens/*/train_*.bin", "tokens/*/tok*"]
)
def test_a_changed_file_of_the_cache_is_noticed_and_one_removed_is_written_again(
    texts: Path, own_folder: Path, name: str
) -> None:
    config = text_config(texts, tokenizer="bpe")
    before = prepare(config)
    (path,) = own_folder.glob(name)
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    with pytest.raises(DataError, match=f"{path.name} is not as it was written; remove the folder"):
        prepare(config)
    path.unlink()
    assert prepare(config).train_bytes == before.train_bytes


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("NANOZOO_CACHE", "/own")
    assert cache_root() == Path("/own")
    monkeypatch.delenv("NANOZOO_CACHE")
    assert cache_root() == Path("/xdg/nanozoo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "nanozoo"


def test_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "made", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert build_once(tmp_path / "made", lambda folder: (folder / "x").touch()).is_dir()


def test_full_disk_is_one_sentence(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"no space is left .* set NANOZOO_CACHE"):
        build_once(tmp_path / "made", fail)


def test_unwritable_cache_folder_is_one_sentence(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOZOO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cache folder .* cannot be written .*NANOZOO_CACHE"):
        prepare(text_config(texts))


def test_processes_at_once_prepare_the_same_data(texts: Path, own_folder: Path) -> None:
    code = (
        "import sys; from nanozoo_core.config import DataConfig, from_defaults;"
        "from nanozoo_core.data.prepare import prepare;"
        "d = prepare(from_defaults(DataConfig, corpus='text', path=sys.argv[1], vocab_size=270));"
        "print(d.fingerprint, d.train[0].path, d.train_tokens)"
    )
    command = [sys.executable, "-c", code, str(texts)]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    answers = {child.communicate()[0] for child in children}
    assert len(answers) == 1
    assert "train_000000.bin" in answers.pop()
    assert len([path for path in (own_folder / "tokens").iterdir() if path.is_dir()]) == 1


def test_bytes_tokenizer_shares_the_text_shards(texts: Path) -> None:
    data = prepare(text_config(texts, tokenizer="bytes"))
    assert data.train == data.source.train
    assert isinstance(data.vocabulary, ByteTokenizer)


# -- a cache that something has swept, texts that change ------------------------------------------


def kept_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_whatever_is_swept_from_the_cache_is_built_again(texts: Path, own_folder: Path) -> None:
    config = text_config(texts, tokenizer="bpe")
    first = prepare(config)
    expected = training_texts(first), first.validation_text(1000), first.train_tokens
    names = [path.relative_to(own_folder) for path in kept_files(own_folder)]
    assert len(names) >= 8
    for name in names:
        for sweep in (Path.unlink, lambda path: path.write_bytes(b"")):
            sweep(own_folder / name)
            again = prepare(config)
            found = training_texts(again), again.validation_text(1000), again.train_tokens
            assert found == expected, name


def test_an_emptied_cache_is_built_again(texts: Path, own_folder: Path) -> None:
    """Scratch cleaners take the files and leave the folders."""
    first = prepare(text_config(texts, tokenizer="bpe"))
    for path in own_folder.rglob("*"):
        if path.is_file():
            path.unlink()
    again = prepare(text_config(texts, tokenizer="bpe"))
    assert training_texts(again) == training_texts(first)


Pass = Callable[[int, list[bytes]], list[bytes]]


@pytest.fixture
def set_passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pass], None]:
    """Lets the passes over a corpus, from 1, give what a function makes of its documents."""
    plain = corpora.TextCorpus.documents
    numbers = itertools.count(1)

    def set_to(change: Pass) -> None:
        def documents(self: corpora.TextCorpus) -> Iterator[bytes]:
            yield from change(next(numbers), list(plain(self)))

        monkeypatch.setattr(corpora.TextCorpus, "documents", documents)

    return set_to


@pytest.mark.parametrize("change", ["text", "shorter", "more"])
def test_a_text_that_changes_while_it_is_read_is_refused(
    texts: Path, own_folder: Path, set_passes: Callable[[Pass], None], change: str
) -> None:
    """Between the pass that splits and the one that writes, with size and time as they were."""

    def changed(number: int, found: list[bytes]) -> list[bytes]:
        others = {
            "text": [*found[:-1], found[-1].upper()],
            "shorter": found[:-1],
            "more": [*found, b"more"],
        }
        return others[change] if number > 1 else found

    set_passes(changed)
    with pytest.raises(DataError, match="has changed while it was read"):
        prepare(text_config(texts, tokenizer="bytes"))
    assert not list(own_folder.rglob("*.bin"))


def test_a_file_that_is_written_meanwhile_is_noticed(
    texts: Path, own_folder: Path, set_passes: Callable[[Pass], None]
) -> None:
    """The second pass read it before; the prepared data would go by its new time."""

    def written(number: int, found: list[bytes]) -> list[bytes]:
        if number == 2:
            (texts / "03.txt").write_text("written at last\n")
        return found

    set_passes(written)
    with pytest.raises(DataError, match="has changed while it was read"):
        prepare(text_config(texts, tokenizer="bytes"))


def test_a_shard_of_both_splits_is_refused(shard_folder: Path) -> None:
    config = from_defaults(
        DataConfig, corpus="bin", path=str(shard_folder), tokenizer="bytes", seq_len=4
    )
    train = next(shard_folder.glob("*train*.bin"))
    both = train.with_name("val_of_train_9.bin")
    both.write_bytes(train.read_bytes())
    with pytest.raises(DataError, match=r"val_of_train_9\.bin has both 'train' and 'val'"):
        prepare(config)
    both.rename(both.with_name("val_9.bin"))
    with pytest.raises(DataError, match=r"val_9\.bin are the same shard"):
        prepare(config)
