"""General-purpose compressors on the validation text: lines of reference for bits per byte."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterable


def compression_baselines(documents: Iterable[bytes]) -> dict[str, float]:
    """Bits per byte of zlib, bz2 and xz at their strongest, on the documents in one stream."""
    text = b"".join(documents)
    compressed = {
        "zlib": zlib.compress(text, 9),
        "bz2": bz2.compress(text, 9),
        "xz": lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
    }
    return {name: 8 * len(data) / len(text) for name, data in compressed.items()}
