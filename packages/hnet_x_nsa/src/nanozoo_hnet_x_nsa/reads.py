"""Shows a text with its chunks, and what sparse attention reads for one byte of it.

python -m nanozoo_hnet_x_nsa.reads RUN --text 'def f(x):' [--byte 7]
python -m nanozoo_hnet_x_nsa.reads RUN --file notes.txt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from nanozoo_core.contract import Vocabulary
from nanozoo_core.errors import ConfigError, NanozooError
from nanozoo_core.machine.terminal import out, warn
from nanozoo_core.training import runs
from nanozoo_hnet_x_nsa.adapter import layer_name
from nanozoo_hnet_x_nsa.model import HNetXNSA
from nanozoo_nsa.mixer import Routing as Reads


@torch.no_grad()
def blocks_read(model: HNetXNSA, tokens: Tensor, place: int) -> dict[str, list[list[int]]]:
    """For each sparse layer and key head, the positions in `tokens` (T,) whose chunks it reads as
    whole blocks when it predicts the token after `place`; compressed keys and window not counted.
    """
    found: dict[str, Reads] = {}
    for name, mixer in model.mixers().items():
        mixer.watcher = lambda reads, name=name: found.__setitem__(name, reads)
    try:
        _, routings = model.encode(tokens[None])
    finally:
        for mixer in model.mixers().values():
            mixer.watcher = None
    starts = [torch.arange(len(tokens), device=tokens.device)]  # of each stage's positions
    for routing in routings:
        starts.append(starts[-1][routing.boundaries[0, : len(starts[-1])]])
    result = {}
    for name, mixer in model.mixers().items():
        begins = starts[name.count("inner")]
        own = int((begins <= place).sum()) - 1  # the position of this stage that holds the byte
        blocks = mixer.blocks(found[name].chosen)[0, :, own]  # (Hk, n)
        ends = torch.cat([begins[1:], begins.new_tensor([len(tokens)])])
        heads = []
        for taken in blocks.tolist():
            steps = [
                b * mixer.grid.block + i for b in taken if b >= 0 for i in range(mixer.grid.block)
            ]
            seen = sorted(step for step in steps if step <= own)
            heads.append([p for s in seen for p in range(int(begins[s]), int(ends[s]))])
        result[layer_name(name)] = heads
    return result


def show(model: HNetXNSA, vocabulary: Vocabulary, chunked: str | None, tokens: list[int], place: int
         ) -> str:  # fmt: skip
    """The chunked text, and for each layer and key head the text with what it does not read as
    dots."""
    read = torch.tensor([vocabulary.separator, *tokens], device=model.embedding.weight.device)
    lines = [chunked or "", f"\nbyte {place}, {vocabulary.decode([tokens[place]])!r}, reads:"]
    for name, heads in blocks_read(model, read, place + 1).items():
        for head, positions in enumerate(heads):
            kept = set(positions)
            pieces = [
                vocabulary.decode_bytes([token]) if i + 1 in kept else b"."
                for i, token in enumerate(tokens[: place + 1])
            ]
            text = b"".join(pieces).decode(errors="replace").replace("\n", "\\n")
            lines.append(f"{name}, key head {head}: {text}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--text", help="what to read")
    parser.add_argument("--file", type=Path, help="or a file of it")
    parser.add_argument("--byte", type=int, help="the byte whose reads are shown; the last one")
    arguments = parser.parse_args()
    try:
        run = runs.load_run(arguments.run)
        if not isinstance(run.model, HNetXNSA):
            raise ConfigError(f"{arguments.run} is a run of {run.config.model}, not of hnet_x_nsa")
        if (arguments.text is None) == (arguments.file is None):
            raise ConfigError("give either --text or --file")
        text = arguments.file.read_text(encoding="utf-8") if arguments.file else arguments.text
        tokens = run.vocabulary.encode(text)
        place = len(tokens) - 1 if arguments.byte is None else arguments.byte
        if not 0 <= place < len(tokens):
            raise ConfigError(f"--byte={place} is not in the text; use 0 .. {len(tokens) - 1}")
        chunked = run.adapter.show_sample(run.model, run.vocabulary, text)
        out(show(run.model, run.vocabulary, chunked, tokens, place))
    except NanozooError as error:
        warn(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
