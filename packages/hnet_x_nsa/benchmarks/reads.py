"""Shows a text with its chunks, and what sparse attention reads for one byte of it.

uv run python packages/hnet_x_nsa/benchmarks/reads.py RUN --text 'def f(x):' [--byte 7]
uv run python packages/hnet_x_nsa/benchmarks/reads.py RUN --file notes.txt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nanozoo_core.errors import ConfigError, NanozooError
from nanozoo_core.training import runs
from nanozoo_hnet_x_nsa.model import HNetXNSA
from nanozoo_hnet_x_nsa.reads import show


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
        text = arguments.file.read_text() if arguments.file else arguments.text
        tokens = run.vocabulary.encode(text)
        place = len(tokens) - 1 if arguments.byte is None else arguments.byte
        if not 0 <= place < len(tokens):
            raise ConfigError(f"--byte={place} is not in the text; use 0 .. {len(tokens) - 1}")
        chunked = run.adapter.show_sample(run.model, run.vocabulary, text)
        print(show(run.model, run.vocabulary, chunked, tokens, place))
    except NanozooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
