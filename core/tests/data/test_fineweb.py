import sys
import types
from pathlib import Path

import pytest
import tiktoken

from nanozoo_core.config import DataConfig, from_defaults
from nanozoo_core.data.fineweb import download
from nanozoo_core.data.prepare import prepare
from nanozoo_core.data.shards import write_shard
from nanozoo_core.data.tokenizers import SEPARATOR
from nanozoo_core.errors import DataError


@pytest.fixture
def fineweb(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FineWeb as a hub that serves three texts in a GPT-2 vocabulary of bytes alone."""
    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=r"\w+|\W+",
        mergeable_ranks={bytes([byte]): 255 - byte for byte in range(256)},
        special_tokens={SEPARATOR: 50256},
    )
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": encoding}.__getitem__)

    def hf_hub_download(repo_id: str, filename: str, repo_type: str, local_dir: str) -> str:
        assert (repo_id, repo_type) == ("kjj0/fineweb10B-gpt2", "dataset")
        path = Path(local_dir) / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard(path, [50256, *encoding.encode_ordinary(f"the text of {filename}")])
        return str(path)

    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = hf_hub_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return own_folder


def test_fineweb_is_fetched_once_and_read_in_gpt2_tokens(fineweb: Path) -> None:
    folder = download("fineweb10B", num_shards=2)
    assert sorted(path.name for path in folder.glob("*.bin")) == [
        "fineweb_train_000001.bin",
        "fineweb_train_000002.bin",
        "fineweb_val_000000.bin",
    ]
    data = prepare(from_defaults(DataConfig, corpus="fineweb10B", tokenizer="gpt2"))
    assert data.train == data.source.train
    assert data.validation_text(8) == [b"the text"]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_fineweb_is_retokenized_for_other_tokenizers(fineweb: Path, tokenizer: str) -> None:
    download("fineweb10B", num_shards=2)
    config = from_defaults(DataConfig, corpus="fineweb10B", tokenizer=tokenizer, vocab_size=260)  # type: ignore[arg-type]
    data = prepare(config)
    tokens = data.train[0].tokens
    text = b"the text of fineweb_train_000001.binthe text of fineweb_train_000002.bin"
    assert data.vocabulary.name == tokenizer
    assert data.vocabulary.decode_bytes(tokens) == text
    gpt2 = prepare(from_defaults(DataConfig, corpus="fineweb10B", tokenizer="gpt2"))
    assert data.fingerprint == gpt2.fingerprint
    assert data.validation_text(20) == gpt2.validation_text(20)


def test_fineweb_without_the_hub_package_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"needs huggingface_hub; install it with"):
        download("fineweb10B")


def test_fineweb_without_a_connection_says_to_run_again(
    fineweb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**settings: str) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(sys.modules["huggingface_hub"], "hf_hub_download", refuse)
    with pytest.raises(DataError, match=r"could not be downloaded .*ConnectionError"):
        download("fineweb10B", num_shards=1)
