"""How many keys a chunk reads on average, beside full attention, as a table over lengths.

    uv run python packages/hnet_x_nsa/benchmarks/keys.py

Per layer and key head, of texts in chunks of five bytes, with the blocks of `hnet_x_nsa_small`.
"""

from __future__ import annotations

import torch

from nanozoo_hnet_x_nsa.adapter import keys_of
from nanozoo_nsa.config import Grid

BYTES_PER_CHUNK = 5
GRID = Grid(window=16, stride=8, block=32, num_selected=8, init_blocks=1, local_blocks=2)
WINDOW = 128


def main() -> None:
    print("| T | chunks | full attention | sparse |\n|---|---|---|---|")
    for thousands in (8, 16, 32, 64, 128):
        chunks = thousands * 1024 // BYTES_PER_CHUNK
        sparse = keys_of(torch.arange(chunks), GRID, WINDOW).double().mean()
        print(f"| {thousands}k | {chunks} | {(chunks + 1) / 2:.0f} | {float(sparse):.0f} |")


if __name__ == "__main__":
    main()
