"""FineWeb as GPT-2 tokens: the shards that the modded-nanogpt community trains on.

Fetched from kjj0/fineweb10B-gpt2 and kjj0/fineweb100B-gpt2 on the Hugging Face hub, each of 100 M
tokens: one for validation, then 103 or 1030 for training.
"""

from __future__ import annotations

import logging
from pathlib import Path

from nanozoo_core.data.cache import cache_root
from nanozoo_core.errors import DataError

logger = logging.getLogger(__name__)

DEFAULT_SHARDS = 9  # 900 M tokens, 1.8 GB: more than a speedrun of the 124M model reads


def fineweb_folder(corpus: str) -> Path:
    """Where the shards of fineweb10B or fineweb100B lie."""
    return cache_root() / corpus


def download(corpus: str, *, num_shards: int | None = None) -> Path:
    """Fetches the validation shard and the first training shards that are not there yet.

    Raises: DataError without huggingface_hub, without a connection or when the cache folder cannot
    be written.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise DataError(
            f"`nanozoo prepare {corpus}` needs huggingface_hub; install it with "
            '`uv pip install "nanozoo-core[fineweb]"`'
        ) from error
    folder = fineweb_folder(corpus)
    names = ["fineweb_val_000000.bin"]
    count = DEFAULT_SHARDS if num_shards is None else num_shards
    names += [f"fineweb_train_{number:06d}.bin" for number in range(1, count + 1)]
    for name in names:
        if (folder / name).is_file():
            continue
        logger.info("downloading %s", name)
        try:
            hf_hub_download(
                repo_id=f"kjj0/{corpus}-gpt2",
                filename=name,
                repo_type="dataset",
                local_dir=str(folder),
            )
        except (OSError, ValueError) as error:
            raise DataError(
                f"{name} of {corpus} could not be downloaded to {folder} "
                f"({type(error).__name__}); run `nanozoo prepare {corpus}` again with a connection "
                "and enough space, it goes on where it stopped"
            ) from error
    return folder
